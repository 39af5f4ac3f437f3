// Which instruction set runs: the best that the processor has, or the one that the environment
// variable SEQKERNELS_CPU_ISA names, for tests.
#include <cstdlib>
#include <cstring>

#include "cpu/decode/decode.h"
#include "cpu/sequence/kernels.h"

namespace seqkernels {
namespace cpu {

#define SK_DECLARE(isa)                                        \
  namespace isa {                                              \
  extern const Kernels kTable[][4];                            \
  extern const Products kProducts[4];                          \
  const DecodeKernels& decode_kernels(Cell cell, Dtype dtype); \
  }
SK_DECLARE(baseline)
#if defined(__x86_64__)
SK_DECLARE(avx2)
SK_DECLARE(avx512)
#endif
#undef SK_DECLARE

namespace {

struct Isa {
  const char* name;
  const Kernels (*table)[4];
  const Products* products;
  const DecodeKernels& (*decode)(Cell, Dtype);
  bool available;
};

const Isa& chosen_isa() {
  static const Isa chosen = [] {
    const Isa all[] = {
#if defined(__x86_64__)
        {"avx512", avx512::kTable, avx512::kProducts, avx512::decode_kernels,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
        {"avx2", avx2::kTable, avx2::kProducts, avx2::decode_kernels,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c")},
#endif
        {"baseline", baseline::kTable, baseline::kProducts, baseline::decode_kernels, true},
    };
    const char* wanted = std::getenv("SEQKERNELS_CPU_ISA");
    // A set that the processor lacks, or an unknown name, is not an error at import: the best is
    // used and seqkernels::cpu_isa tells which.
    for (const Isa& isa : all)
      if (wanted != nullptr && isa.available && std::strcmp(wanted, isa.name) == 0) return isa;
    for (const Isa& isa : all)
      if (isa.available) return isa;
    return all[0];
  }();
  return chosen;
}

}  // namespace

const Kernels& kernels(Cell cell, Dtype dtype) { return chosen_isa().table[int(cell)][int(dtype)]; }
const Products& products(Dtype dtype) { return chosen_isa().products[int(dtype)]; }
const DecodeKernels& decode_kernels(Cell cell, Dtype dtype) {
  return chosen_isa().decode(cell, dtype);
}
const char* isa_name() { return chosen_isa().name; }

}  // namespace cpu
}  // namespace seqkernels
