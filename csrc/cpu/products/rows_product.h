// grad^T x: what every weight gradient is, the sum over all steps and rows of gate gradients times
// inputs. Both operands lie row after row, so a step of the sum reads a run of each.
//
// Rows are taken in blocks whose panels stay in the first-level cache: kMaxRows columns of grad,
// packed on the stack, pass over panels of kWidth columns of x, packed once a block. A block is
// summed in registers and then added to the result, so the error grows with the number of blocks.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/sequence/kernels.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename T>
struct RowsProductKernel {
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes, kVectors = 2, kWidth = kVectors * kLanes;
  static constexpr int kColumns = kAccumulators / kVectors;  // of grad, in a tile
  static constexpr int64_t kBlock = kRowsProductBlock, kGroup = 4;

  // out [columns, n] += or = grad [rows, kColumns]^T x [rows, kWidth], both packed.
  template <int columns>
  static void tile(const T* grad, const T* x, int64_t rows, T* out, int64_t stride, int64_t n,
                   bool add) {
    V sum[columns][kVectors];
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) {
      __builtin_prefetch(out + c * stride, 1);
      __builtin_prefetch(out + c * stride + kLanes, 1);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[c][v] = V(T(0));
    }
    for (int64_t r = 0; r < rows; ++r, grad += kColumns, x += kWidth) {
      const V x0 = load(x), x1 = load(x + kLanes);
#pragma GCC unroll 12
      for (int c = 0; c < columns; ++c) {
        const V g(grad[c]);
        sum[c][0] = sum[c][0] + g * x0;
        sum[c][1] = sum[c][1] + g * x1;
      }
    }
#pragma GCC unroll 12
    for (int c = 0; c < columns; ++c) {
      T* to = out + c * stride;
      if (n >= kWidth) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v, to += kLanes)
          store(to, add ? load(to) + sum[c][v] : sum[c][v]);
      } else {
        alignas(64) T sums[kWidth];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, sum[c][v]);
        for (int64_t k = 0; k < n; ++k) to[k] = add ? to[k] + sums[k] : sums[k];
      }
    }
  }

  // The first kTo of n values, zeros beyond n.
  template <int kTo>
  SK_ALWAYS static void copy(const T* from, int64_t n, T* to) {
    if (n >= kTo) {
      std::memcpy(to, from, kTo * sizeof(T));
      return;
    }
    for (int64_t c = 0; c < kTo; ++c) to[c] = c < n ? from[c] : T(0);
  }

  // Up to kGroup panels from `index` on of one gradient; returns how many.
  static int64_t take_panels(const RowsProduct& p, int64_t begin, int64_t rows, int64_t k0,
                             int64_t k1, int64_t index, int64_t end, const T* packed) {
    alignas(64) T grads[kGroup][kBlock * kColumns];
    int64_t g = 0, first = index, row0 = 0;
    while (first >= panels_of(p.columns[g])) {
      first -= panels_of(p.columns[g]);
      row0 += p.columns[g++];
    }
    const int64_t left = panels_of(p.columns[g]) - first, wanted = end - index;
    int64_t count = left < wanted ? left : wanted;
    if (count > kGroup) count = kGroup;
    // By rows: a cache line of grad serves all panels that it reaches into.
    const int64_t stride = p.strides[g], columns = p.columns[g] - first * kColumns;
    const T* grad = static_cast<const T*>(p.grads[g]) + begin * stride + first * kColumns;
    for (int64_t r = 0; r < rows; ++r, grad += stride)
      for (int64_t q = 0; q < count; ++q)
        copy<kColumns>(grad + q * kColumns, columns - q * kColumns, grads[q] + r * kColumns);
    T* out = static_cast<T*>(p.out) + (row0 + first * kColumns) * p.width;
    for (int64_t q = 0; q < count; ++q) {
      const int64_t n = columns - q * kColumns < kColumns ? columns - q * kColumns : kColumns;
      const T* x = packed;
      for (int64_t k = k0; k < k1; k += kWidth, x += rows * kWidth)
        tiles(n, grads[q], x, rows, out + q * kColumns * p.width + k, p.width,
              k1 - k < kWidth ? k1 - k : kWidth, begin > 0);
    }
    return count;
  }

  static void tiles(int64_t columns, const T* grad, const T* x, int64_t rows, T* out,
                    int64_t stride, int64_t n, bool add) {
    with_count<kColumns>(columns,
                         [&](auto count) { tile<count>(grad, x, rows, out, stride, n, add); });
  }

  static int64_t panels_of(int64_t columns) { return (columns + kColumns - 1) / kColumns; }
  static int64_t panels(const RowsProduct& p) {
    int64_t count = 0;
    for (int64_t g = 0; g < p.gradients; ++g) count += panels_of(p.columns[g]);
    return count;
  }

  // Panels p0 to p1 of kColumns columns of grad; a panel does not cross from one gradient to the
  // next.
  static void run(const RowsProduct& p, int64_t p0, int64_t p1, void* workspace) {
    T* packed = static_cast<T*>(workspace);
    for (int64_t begin = 0; begin < p.rows;) {
      // A block lies within one of the inputs.
      int64_t input = 0, at = begin;
      while (at >= p.x_rows[input]) at -= p.x_rows[input++];
      const int64_t left = p.x_rows[input] - at, rows = left < kBlock ? left : kBlock;
      const T* x = static_cast<const T*>(p.x[input]) + at * p.width;
      for (int64_t k0 = 0; k0 < p.width; k0 += kRowsProductWidth) {
        const int64_t k1 = p.width - k0 < kRowsProductWidth ? p.width : k0 + kRowsProductWidth;
        T* to = packed;
        for (int64_t k = k0; k < k1; k += kWidth)
          for (int64_t r = 0; r < rows; ++r, to += kWidth)
            copy<kWidth>(x + r * p.width + k, k1 - k, to);
        for (int64_t index = p0; index < p1;)
          index += take_panels(p, begin, rows, k0, k1, index, p1, packed);
      }
      begin += rows;
    }
  }
};

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
