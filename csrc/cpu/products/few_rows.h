// Products of greedy decoding: a [rows, depth] times one panel of weights.
//
// Two kinds. With many rows the weights are packed, [depth, width], and each row of a tile keeps
// its results in registers over a run of the depth. With few rows packing would cost more than it
// saves within one call: the weights are read as torch stores them, and the lanes of a vector run
// along the depth and are folded at the end.
//
// Either way a result is summed in an order that depends on its own place alone. `product` in
// tiles.h is faster for two or three rows because it splits the depth into chains, but by a
// number that depends on the rows.
#pragma once
#include <utility>

#include "cpu/isa/vec.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

// out [kRows, kVectors * lanes] += a w.
template <typename T, int kRows, int kVectors>
void packed_tile(const T* a, int64_t stride, const T* w, int64_t depth, T* out) {
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes, kWidth = kVectors * kLanes;
  V sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(out + r * kWidth + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    V x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = load(w + k * kWidth + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const V y(a[r * stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v] + y * x[v];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + r * kWidth + v * kLanes, sum[r][v]);
}

template <typename T, int kVectors>
void packed_product(const T* a, int64_t stride, int64_t rows, const T* w, int64_t depth, T* out) {
  constexpr int kMaxRows = kAccumulators / kVectors;
  constexpr int64_t kWidth = kVectors * Vec<T>::kLanes;
  const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
  // A run of the panel takes 16 KB of the first-level cache while every block passes over it.
  const int64_t run = blocks > 1 ? 16384 / (kVectors * kBytes) : depth;
  for (int64_t k = 0; k < depth; k += run) {
    const int64_t n = depth - k < run ? depth - k : run;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = rows * block / blocks, last = rows * (block + 1) / blocks;
      const T *x = a + first * stride + k, *panel = w + k * kWidth;
      T* y = out + first * kWidth;
      with_count<kMaxRows>(last - first, [&](auto count) {
        packed_tile<T, count, kVectors>(x, stride, panel, n, y);
      });
    }
  }
}

// Lane i of one half of the 2 * lanes values of (a, b), taken in runs of kRun: the even runs, or
// with an offset of kRun the odd ones.
constexpr int run_lane(int i, int run, int offset) { return i / run * 2 * run + offset + i % run; }

template <typename Raw, int kRun, int kOffset, int... i>
SK_ALWAYS Raw take_runs(Raw a, Raw b, std::integer_sequence<int, i...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, run_lane(i, kRun, kOffset)...);
#else
  constexpr int kLanes = sizeof...(i);
  Raw result;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int from = run_lane(lane, kRun, kOffset);
    result[lane] = from < kLanes ? a[from] : b[from - kLanes];
  }
  return result;
#endif
}

// Fold kCount vectors to the sums of their lanes: afterwards lane c of v[0] is the sum of what was
// v[c]. Every level halves the runs of lanes that belong to one vector.
template <typename T, int kCount, int kRun = Vec<T>::kLanes / 2>
SK_ALWAYS void fold(Vec<T>* v) {
  static_assert(kCount <= Vec<T>::kLanes, "more vectors than lanes");
  if constexpr (kRun > 0) {
    using Raw = typename Vec<T>::Raw;
    using Lanes = std::make_integer_sequence<int, Vec<T>::kLanes>;
    constexpr int kHalf = kCount > 1 ? kCount / 2 : 1;
#pragma GCC unroll 8
    for (int c = 0; c < kHalf; ++c) {
      const Raw a = v[kCount > 1 ? 2 * c : 0].v, b = v[kCount > 1 ? 2 * c + 1 : 0].v;
      v[c] = take_runs<Raw, kRun, 0>(a, b, Lanes()) + take_runs<Raw, kRun, kRun>(a, b, Lanes());
    }
    fold<T, kHalf, kRun / 2>(v);
  }
}

// kCount rows of weights, `depth` long, times kRows rows of a; results `width` apart.
template <typename T, int kRows, int kCount>
void dot_tile(const T* a, int64_t stride, const T* w, int64_t depth, T* out, int64_t width) {
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes;
  V sum[kRows][kCount];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) sum[r][c] = V(T(0));
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    V x[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r] = load(a + r * stride + k);
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      const V y = load(w + c * depth + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][c] = sum[r][c] + x[r] * y;
    }
  }
  if (k < depth) {
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      const V y = load<false>(w + c * depth + k, depth - k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        sum[r][c] = sum[r][c] + load<false>(a + r * stride + k, depth - k) * y;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    fold<T, kCount>(sum[r]);
    std::memcpy(out + r * width, &sum[r][0].v, kCount * sizeof(T));
  }
}

// `count` consecutive rows of weights in torch's layout times `rows` rows of a.
template <typename T>
void dots(const T* a, int64_t stride, int64_t rows, const T* w, int64_t depth, int64_t count,
          T* out, int64_t width) {
  constexpr int kLanes = Vec<T>::kLanes;
  // Eight sums hide the latency of one; two rows share every load of a weight.
  constexpr int kCount = kLanes < 8 ? kLanes : 8;
  constexpr int kHalf = kCount / 2;
  for (int64_t c = 0; c < count;) {
    const T* x = w + c * depth;
    const bool whole = c + kCount <= count;
    int64_t r = 0;
    if (whole) {
      for (; r + 2 <= rows; r += 2)
        for (int half = 0; half < kCount; half += kHalf)
          dot_tile<T, 2, kHalf>(a + r * stride, stride, x + half * depth, depth,
                                out + r * width + c + half, width);
      for (; r < rows; ++r)
        dot_tile<T, 1, kCount>(a + r * stride, stride, x, depth, out + r * width + c, width);
      c += kCount;
    } else {
      for (; r < rows; ++r)
        dot_tile<T, 1, 1>(a + r * stride, stride, x, depth, out + r * width + c, width);
      ++c;
    }
  }
}

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
