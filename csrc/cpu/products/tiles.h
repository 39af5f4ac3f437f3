// The recurrent product: rows of the state times one panel of packed weights, in registers.
//
// A panel is [depth, kVectors * lanes]. kRows x kVectors sums stay in registers over the whole
// depth, or over a run of it that keeps the panel's run in the first-level cache while every
// block of rows passes over it.
#pragma once
#include <utility>

#include "cpu/isa/vec.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

// out [kRows, kVectors * lanes] = a [kRows, depth] b, or += if `add`.
template <typename T, int kRows, int kVectors>
void tile(const T* a, int64_t stride, const T* b, int64_t depth, T* out, bool add) {
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes, kWidth = kVectors * kLanes;
  // A fused multiply-add takes about four cycles and two start in each: eight sums must be under
  // way.
  constexpr int kSums = kRows * kVectors;
  constexpr int kChains = kSums >= 8 ? 1 : kSums >= 4 ? 2 : 4;
  V sum[kChains][kRows][kVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[c][r][v] = V(T(0));
  int64_t k = 0;
  for (; k + kChains <= depth; k += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
      V w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = load(b + (k + c) * kWidth + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const V x(a[r * stride + k + c]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[c][r][v] = sum[c][r][v] + x * w[v];
      }
    }
  }
  if (kChains > 1)
    for (; k < depth; ++k)
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const V x(a[r * stride + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          sum[0][r][v] = sum[0][r][v] + x * load(b + k * kWidth + v * kLanes);
      }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V total = sum[0][r][v];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total = total + sum[c][r][v];
      T* to = out + r * kWidth + v * kLanes;
      store(to, add ? load(to) + total : total);
    }
}

// The lanes of a and b by turns: of their first halves, or from `from` = lanes / 2 of their second.
template <typename Raw, int kFrom, int... i>
SK_ALWAYS Raw interleave(Raw a, Raw b, std::integer_sequence<int, i...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (kFrom + i / 2 + i % 2 * int(sizeof...(i)))...);
#else
  Raw result;
  for (int lane = 0; lane < int(sizeof...(i)); ++lane)
    result[lane] = lane % 2 ? b[kFrom + lane / 2] : a[kFrom + lane / 2];
  return result;
#endif
}

// Transpose a square of lanes x lanes values: every round doubles the runs of one column.
template <typename T>
SK_ALWAYS void transpose(Vec<T>* v) {
  using Raw = typename Vec<T>::Raw;
  constexpr int kLanes = Vec<T>::kLanes, kHalf = kLanes / 2;
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec<T> next[kLanes];
#pragma GCC unroll 8
    for (int k = 0; k < kHalf; ++k) {
      next[2 * k] = interleave<Raw, 0>(v[k].v, v[k + kHalf].v, Lanes());
      next[2 * k + 1] = interleave<Raw, kHalf>(v[k].v, v[k + kHalf].v, Lanes());
    }
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; ++k) v[k] = next[k];
  }
}

// Rows of one call of `product`: what its caller reserves in `out`.
constexpr int64_t kBlockRows = 48;

// out [rows, kVectors * lanes] = a [rows, depth] b; rows <= kBlockRows.
template <typename T, int kVectors>
void product(const T* a, int64_t stride, int64_t rows, const T* b, int64_t depth, T* out) {
  constexpr int kMaxRows = kAccumulators / kVectors;
  constexpr int64_t kWidth = kVectors * Vec<T>::kLanes;
  const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
  // A run of the panel takes 24 KB of the first-level cache. Each is summed by itself: the error
  // of a sum grows with the number of terms added one after another, so one block too goes in
  // runs.
  const int64_t run = blocks > 1 ? 24576 / (kVectors * kBytes) : 256;
  for (int64_t k = 0; k < depth; k += run) {
    const int64_t n = depth - k < run ? depth - k : run;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = rows * block / blocks, last = rows * (block + 1) / blocks;
      const T *x = a + first * stride + k, *w = b + k * kWidth;
      T* y = out + first * kWidth;
      with_count<kMaxRows>(
          last - first, [&](auto count) { tile<T, count, kVectors>(x, stride, w, n, y, k > 0); });
    }
  }
}

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
