// The backward of stacked layers in one launch, for every cell, bfloat16: persistent_bfloat16.cu
// has the forward, and says how a layer is cut up; stack.h says how the layers wait for one
// another.
#include "cuda/persistent/backward.h"

namespace seqkernels {

int launch_stacked_backward_bfloat16(Cell cell, const SequenceArgs& args, void* stream) {
  return launch_backward<BFloat16Math, true>(cell, args, stream);
}

}  // namespace seqkernels
