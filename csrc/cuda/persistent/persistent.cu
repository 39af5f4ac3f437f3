// A whole sequence in one launch, for every cell: one layer, both directions, or stacked layers
// (stack.h). The build compiles this for every number format and pass: SK_MATH is one of Math,
// SK_PASS one of Pass.
//
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

template <Math math, Pass pass>
int launch_persistent_as(Cell cell, const SequenceArgs& args, void* stream) {
  using M = Format<math>;
  return visit(cell, [&](auto type) {
    using C = typename decltype(type)::type;
    if constexpr (pass == Pass::kForward) {
      return launch_policy<Forward<C, typename M::scalar>, M>(args, stream);
    } else {
      constexpr bool kStacked = pass == Pass::kStackedBackward;
      return launch_policy<Backward<C, typename M::scalar, kStacked>, M>(args, stream);
    }
  });
}

template int launch_persistent_as<Math::SK_MATH, Pass::SK_PASS>(Cell, const SequenceArgs&, void*);

}  // namespace seqkernels
