// What a .cu file sees in place of CUDA's device environment when g++ builds it with -DSK_EMULATE:
// CUDA's own names. device.h and its parts call the wrappers in emu_device.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "emu_core.h"

// The host headers define these as attributes that g++ does not know.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#undef __shared__
#define __shared__ static_assert(false, "declare shared memory with SK_SHARED")

#define threadIdx (emu::current->thread_idx)
#define blockIdx (emu::current->block->block_idx)
#define blockDim (emu::grid->block_dim)
#define gridDim (emu::grid->grid_dim)

#define EMU_PLACE emu::Place place = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMU_PLACE) { emu::block_barrier("__syncthreads", place); }

inline void __syncwarp(unsigned mask = ~0u, EMU_PLACE) {
  emu::Meeting& meeting = emu::meet(mask, "__syncwarp", place, nullptr, 0);
  EMU_ACQUIRE(&meeting);
  emu::leave(meeting);
}

namespace emu {

// The value of lane `from` of the segment, or the own one where the source lies outside it.
template <typename T>
T shuffle(unsigned mask, T value, int from, const char* what, Place place) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Meeting& meeting = meet(mask, what, place, &value, sizeof(T));
  if (!(meeting.mask >> from & 1)) {
    fail(place, std::string(what) + " reads lane " + std::to_string(from) +
                    ", which has exited or is not in the mask: the value is undefined");
  }
  read_slot(meeting, from, &value, sizeof(T));
  leave(meeting);
  return value;
}

template <typename Finish>
auto vote(unsigned mask, int predicate, const char* what, Place place, Finish finish) {
  Meeting& meeting = meet(mask, what, place, &predicate, sizeof(predicate));
  mask = meeting.mask;
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    int other = 0;
    if (mask >> lane & 1) read_slot(meeting, lane, &other, sizeof(other));
    bits |= unsigned(other != 0) << lane;
  }
  leave(meeting);
  return finish(bits, mask);
}

}  // namespace emu

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_PLACE) {
  const int from = (emu::current->lane & ~(width - 1)) | (source & (width - 1));
  return emu::shuffle(mask, value, from, "__shfl_sync", place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMU_PLACE) {
  const int lane = emu::current->lane, from = lane ^ lane_mask;
  const bool inside = from < (lane & ~(width - 1)) + width;
  return emu::shuffle(mask, value, inside ? from : lane, "__shfl_xor_sync", place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
  const int lane = emu::current->lane, from = lane - int(delta);
  const bool inside = from >= (lane & ~(width - 1));
  return emu::shuffle(mask, value, inside ? from : lane, "__shfl_up_sync", place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_PLACE) {
  const int lane = emu::current->lane, from = lane + int(delta);
  const bool inside = from < (lane & ~(width - 1)) + width;
  return emu::shuffle(mask, value, inside ? from : lane, "__shfl_down_sync", place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_PLACE) {
  return emu::vote(mask, predicate, "__ballot_sync", place,
                   [](unsigned bits, unsigned) { return bits; });
}
inline int __any_sync(unsigned mask, int predicate, EMU_PLACE) {
  return emu::vote(mask, predicate, "__any_sync", place,
                   [](unsigned bits, unsigned) { return bits != 0; });
}
inline int __all_sync(unsigned mask, int predicate, EMU_PLACE) {
  return emu::vote(mask, predicate, "__all_sync", place,
                   [](unsigned bits, unsigned mask) { return bits == mask; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __int_as_float(int x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
inline int __float_as_int(float x) {
  int y;
  memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __uint_as_float(unsigned x) { return __int_as_float(int(x)); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

#include "emu_device.h"
