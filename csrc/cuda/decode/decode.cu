// Greedy decoding in one launch, for every pointwise cell: decode.h has the kernel. The build
// compiles this for every storage type: SK_DTYPE is one of Dtype.
#include "cuda/decode/decode.h"

namespace seqkernels {
template <Dtype dtype>
int launch_decode_as(Cell cell, const DecodeArgs& args, void* stream) {
  using Narrow = std::conditional_t<dtype == Dtype::kFloat16, __half, __nv_bfloat16>;
  using Scalar = std::conditional_t<dtype == Dtype::kFloat32, float, Narrow>;
  return visit(cell, [&](auto type) {
    using C = typename decltype(type)::type;
    if constexpr (kPointwise<C>) {
      return args.plan.tile == 1 ? launch_tile<C, Scalar, 1>(args, stream)
                                 : launch_tile<C, Scalar, 4>(args, stream);
    } else {
      return int(cudaErrorInvalidValue);
    }
  });
}

template int launch_decode_as<Dtype::SK_DTYPE>(Cell, const DecodeArgs&, void*);

}  // namespace seqkernels
