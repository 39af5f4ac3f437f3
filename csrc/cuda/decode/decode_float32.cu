// Greedy decoding in one launch, for every cell, float32: decode.h has the kernel.
#include "cuda/decode/decode.h"

namespace seqkernels {

int launch_decode_float32(Cell cell, const DecodeArgs& args, void* stream) {
  return launch_decode_as<float>(cell, args, stream);
}

}  // namespace seqkernels
