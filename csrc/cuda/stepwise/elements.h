// Vectorised loads and stores of the pointwise kernels, and the division of work over threads.
#pragma once
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/ptx/device.h"

namespace seqkernels {

template <typename scalar_t>
using carry_of = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename acc_t, typename scalar_t>
SK_DEVICE acc_t widen(scalar_t x) {
  if constexpr (std::is_same_v<acc_t, double>) {
    return x;
  } else {
    return sk::to_float(x);
  }
}
template <typename scalar_t, typename acc_t>
SK_DEVICE scalar_t narrow(acc_t x) {
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return x;
  } else {
    return sk::from_float<scalar_t>(x);
  }
}

template <typename scalar_t, int V>
struct alignas(sizeof(scalar_t) * V) Pack {
  scalar_t lane[V];
};

// V neighbouring elements from index i (a multiple of V), as acc_t; zeros where p is null.
template <int V, typename scalar_t, typename acc_t>
SK_DEVICE void load(acc_t (&to)[V], const void* p, int64_t i) {
  Pack<scalar_t, V> pack;
  if (p != nullptr)
    pack = *reinterpret_cast<const Pack<scalar_t, V>*>(static_cast<const scalar_t*>(p) + i);
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = p != nullptr ? widen<acc_t>(pack.lane[v]) : acc_t(0);
}
template <int V, typename scalar_t, typename acc_t>
SK_DEVICE void store(void* p, int64_t i, const acc_t (&from)[V]) {
  if (p == nullptr) return;
  Pack<scalar_t, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.lane[v] = narrow<scalar_t>(from[v]);
  *reinterpret_cast<Pack<scalar_t, V>*>(static_cast<scalar_t*>(p) + i) = pack;
}

// The same for a member of V structures, to which `member` leads.
template <typename scalar_t, typename S, int V, typename Member>
SK_DEVICE void load_each(S (&each)[V], const Member& member, const void* p, int64_t i) {
  std::decay_t<decltype(member(each[0]))> lanes[V];
  load<V, scalar_t>(lanes, p, i);
#pragma unroll
  for (int v = 0; v < V; ++v) member(each[v]) = lanes[v];
}
template <typename scalar_t, typename S, int V, typename Member>
SK_DEVICE void store_each(void* p, int64_t i, const S (&each)[V], const Member& member) {
  std::decay_t<decltype(member(each[0]))> lanes[V];
#pragma unroll
  for (int v = 0; v < V; ++v) lanes[v] = member(each[v]);
  store<V, scalar_t>(p, i, lanes);
}

// The V units of this thread, or `valid` = false past the end.
struct Place {
  int64_t row, unit;
  bool valid;
};
template <int V>
SK_DEVICE Place own_place(int64_t rows, int64_t hidden) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t per_row = hidden / V, total = rows * per_row;
  Place place{0, 0, i < total};
  if (total <= 0xffffffffll) {  // 64-bit division costs several times the 32-bit one
    const uint32_t row = uint32_t(i) / uint32_t(per_row);
    place.row = row;
    place.unit = int64_t(uint32_t(i) - row * uint32_t(per_row)) * V;
  } else {
    place.row = i / per_row;
    place.unit = (i - place.row * per_row) * V;
  }
  return place;
}

inline bool aligned_to(int bytes, std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) return false;
  }
  return true;
}

// Launches kernel(args) with one thread for V units.
template <int V, typename Kernel, typename Args>
int launch_elements(Kernel kernel, int64_t rows, int64_t hidden, const Args& args, void* stream) {
  constexpr int kThreads = 256;
  const int64_t blocks = (rows * (hidden / V) + kThreads - 1) / kThreads;
  if (blocks == 0) return 0;
  sk::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(blocks));
  config.block = dim3(kThreads);
  config.stream = stream;
  return sk::launch(kernel, config, args);
}

// Calls f(scalar) with a value of the storage type that `dtype` names.
template <typename F>
int for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(double());
    case Dtype::kFloat32:
      return f(float());
    case Dtype::kFloat16:
      return f(__half());
    case Dtype::kBFloat16:
      return f(__nv_bfloat16());
  }
  return 1;  // cudaErrorInvalidValue
}

}  // namespace seqkernels
