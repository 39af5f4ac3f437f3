// The backward of stacked layers in one launch, for every cell, float16: persistent_half.cu has the
// forward, and says how a layer is cut up; stack.h says how the layers wait for one another.
#include "cuda/persistent/backward.h"

namespace seqkernels {

int launch_stacked_backward_half(Cell cell, const SequenceArgs& args, void* stream) {
  return launch_backward<HalfMath, true>(cell, args, stream);
}

}  // namespace seqkernels
