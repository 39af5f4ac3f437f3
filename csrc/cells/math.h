// Scalar functions that cells are written in. Classes of several lanes bring their own `exp_`,
// `tanh_`, `relu_` and `positive_`, found by argument-dependent lookup.
#pragma once
#include <cmath>

#ifdef __CUDACC__
#define SK_INLINE __host__ __device__ __forceinline__
#else
#define SK_INLINE inline __attribute__((always_inline))
#endif

namespace seqkernels {

// `std::`: the unqualified name would bind to the double function on the host.
SK_INLINE float exp_(float x) { return std::exp(x); }
SK_INLINE double exp_(double x) { return std::exp(x); }
SK_INLINE float tanh_(float x) { return std::tanh(x); }
SK_INLINE double tanh_(double x) { return std::tanh(x); }
// A NaN passes through, as in torch.
SK_INLINE float relu_(float x) { return x < 0.0f ? 0.0f : x; }
SK_INLINE double relu_(double x) { return x < 0.0 ? 0.0 : x; }
// 1 where y > 0, else 0: the derivative of relu written in its result.
SK_INLINE float positive_(float y) { return y > 0.0f ? 1.0f : 0.0f; }
SK_INLINE double positive_(double y) { return y > 0.0 ? 1.0 : 0.0; }

template <typename T>
SK_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + exp_(-x));
}
// Derivatives of sigmoid and tanh, written in their results.
template <typename T>
SK_INLINE T sigmoid_grad(T y) {
  return y * (T(1) - y);
}
template <typename T>
SK_INLINE T tanh_grad(T y) {
  return T(1) - y * y;
}

}  // namespace seqkernels
