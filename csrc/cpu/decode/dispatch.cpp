// The decoding kernels of the instruction set that isa.cpp has chosen.
#include <cstring>

#include "cpu/decode/decode.h"
#include "cpu/sequence/kernels.h"

namespace seqkernels {
namespace cpu {

namespace baseline {
const DecodeKernels& decode_kernels(Cell cell, Dtype dtype);
}
#if defined(__x86_64__)
namespace avx2 {
const DecodeKernels& decode_kernels(Cell cell, Dtype dtype);
}
namespace avx512 {
const DecodeKernels& decode_kernels(Cell cell, Dtype dtype);
}
#endif

const DecodeKernels& decode_kernels(Cell cell, Dtype dtype) {
#if defined(__x86_64__)
  if (std::strcmp(isa_name(), "avx512") == 0) return avx512::decode_kernels(cell, dtype);
  if (std::strcmp(isa_name(), "avx2") == 0) return avx2::decode_kernels(cell, dtype);
#endif
  return baseline::decode_kernels(cell, dtype);
}

}  // namespace cpu
}  // namespace seqkernels
