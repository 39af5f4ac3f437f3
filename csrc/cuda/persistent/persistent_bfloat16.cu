// A whole sequence in one launch, forward and backward, for every cell, bfloat16 with float32 sums.
// A block owns hidden units with all their gates; a warp a tile of 16 gate rows and part of k.
// Recurrent weights stay in registers and shared memory, states (or their gradients) in registers.
// Blocks of a group exchange h (or gate gradients) every step: in a cluster, or by flagged words.
// bench/results/<device>/standard.json will compare it with cuDNN; plan.h decides shapes and
// refuses.
//
// Limitations: but for a backward through L2, the exchanged values of a whole group must fit in
// a block's shared memory; at most 512 elements of state a block; wgmma and TMA are not used.
#include "cuda/persistent/backward.h"
#include "cuda/persistent/forward.h"

namespace seqkernels {

int launch_persistent_bfloat16(Cell cell, bool backward, const SequenceArgs& args, void* stream) {
  if (backward && args.plan.stacked != 0) {
    return launch_stacked_backward_bfloat16(cell, args, stream);
  }
  return backward ? launch_backward<BFloat16Math, false>(cell, args, stream)
                  : launch_forward<BFloat16Math>(cell, args, stream);
}

}  // namespace seqkernels
