// Greedy decoding in one launch, for every cell, float16: decode.h has the kernel.
#include "cuda/decode/decode.h"

namespace seqkernels {

int launch_decode_half(Cell cell, const DecodeArgs& args, void* stream) {
  return launch_decode_as<__half>(cell, args, stream);
}

}  // namespace seqkernels
