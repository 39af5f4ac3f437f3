// Which instruction set runs: the best that the processor has, or the one that the environment
// variable SEQKERNELS_CPU_ISA names, for tests.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace seqkernels {
namespace cpu {

namespace baseline {
extern const Kernels kTable[][4];
extern const Products kProducts[4];
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kTable[][4];
extern const Products kProducts[4];
}  // namespace avx2
namespace avx512 {
extern const Kernels kTable[][4];
extern const Products kProducts[4];
}  // namespace avx512
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels (*table)[4];
  const Products* products;
  bool available;
};

const Isa& chosen_isa() {
  static const Isa chosen = [] {
    const Isa all[] = {
#if defined(__x86_64__)
        {"avx512", avx512::kTable, avx512::kProducts,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
        {"avx2", avx2::kTable, avx2::kProducts,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c")},
#endif
        {"baseline", baseline::kTable, baseline::kProducts, true},
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
const char* isa_name() { return chosen_isa().name; }

}  // namespace cpu
}  // namespace seqkernels
