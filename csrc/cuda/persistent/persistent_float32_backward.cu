// The backward of one layer or both directions in one launch, for every cell, strict float32:
// persistent_float32.cu has the forward, and says how a layer is cut up.
#include "cuda/persistent/backward.h"

namespace seqkernels {

int launch_backward_float32(Cell cell, const SequenceArgs& args, void* stream) {
  return launch_backward<Float32Math, false>(cell, args, stream);
}

}  // namespace seqkernels
