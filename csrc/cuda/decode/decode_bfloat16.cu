// Greedy decoding in one launch, for every cell, bfloat16: decode.h has the kernel.
#include "cuda/decode/decode.h"

namespace seqkernels {

int launch_decode_bfloat16(Cell cell, const DecodeArgs& args, void* stream) {
  return launch_decode_as<__nv_bfloat16>(cell, args, stream);
}

}  // namespace seqkernels
