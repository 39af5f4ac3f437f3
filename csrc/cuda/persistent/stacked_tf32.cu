// The backward of stacked layers in one launch, for every cell, TF32: persistent_tf32.cu has the
// forward, and says how a layer is cut up; stack.h says how the layers wait for one another.
#include "cuda/persistent/backward.h"

namespace seqkernels {

int launch_stacked_backward_tf32(Cell cell, const SequenceArgs& args, void* stream) {
  return launch_backward<Tf32Math, true>(cell, args, stream);
}

}  // namespace seqkernels
