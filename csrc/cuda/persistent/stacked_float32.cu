// The backward of stacked layers in one launch, for every cell, strict float32:
// persistent_float32.cu has the forward, and says how a layer is cut up; stack.h says how the
// layers wait for one another.
#include "cuda/persistent/backward.h"

namespace seqkernels {

int launch_stacked_backward_float32(Cell cell, const SequenceArgs& args, void* stream) {
  return launch_backward<Float32Math, true>(cell, args, stream);
}

}  // namespace seqkernels
