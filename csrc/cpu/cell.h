// One step of a cell without its product: what LSTMCell, GRUCell and RNNCell run after their
// matmuls.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename C, typename S>
struct CellKernel {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int kGates = C::kGates, kLanes = V::kLanes;
  static constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;

  template <bool kFull>
  SK_ALWAYS static V at(const void* p, int64_t index, int64_t n) {
    return load<kFull>(static_cast<const S*>(p) + index, n);
  }
  template <bool kFull>
  SK_ALWAYS static void put(void* p, int64_t index, V x, int64_t n) {
    store<kFull>(static_cast<S*>(p) + index, x, n);
  }

  template <bool kFull>
  SK_ALWAYS static void forward_units(const CellForward& f, int64_t row, int64_t j, int64_t n) {
    const int64_t H = f.hidden, own = row * H + j, gates = row * kGates * H + j;
    V x[kGates], y[kGates], saved[kSaved], new_h, new_c;
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      x[g] = at<kFull>(f.gates_x, gates + g * H, n);
      y[g] = at<kFull>(f.gates_h, gates + g * H, n);
    }
    const V h = at<kFull>(f.h, own, n);
    V c = h;
    if constexpr (C::kStates == 2) c = at<kFull>(f.c, own, n);
    C::forward(x, y, h, c, &new_h, &new_c, saved);
    put<kFull>(f.new_h, own, new_h, n);
    if constexpr (C::kStates == 2) put<kFull>(f.new_c, own, new_c, n);
    if (f.saved)
#pragma GCC unroll 4
      for (int k = 0; k < C::kSaved; ++k)
        put<kFull>(f.saved, row * C::kSaved * H + k * H + j, saved[k], n);
  }

  template <bool kFull>
  SK_ALWAYS static void backward_units(const CellBackward& b, int64_t row, int64_t j, int64_t n) {
    const int64_t H = b.hidden, own = row * H + j, gates = row * kGates * H + j;
    V saved[kSaved], grads[kGates], grad_hn, grad_prev_h, grad_prev_c;
#pragma GCC unroll 4
    for (int k = 0; k < C::kSaved; ++k)
      saved[k] = at<kFull>(b.saved, row * C::kSaved * H + k * H + j, n);
    const V h = at<kFull>(b.h, own, n), new_h = at<kFull>(b.new_h, own, n);
    V c = h, new_c = h, grad_h(T(0)), grad_c(T(0));
    if (b.grad_new_h) grad_h = at<kFull>(b.grad_new_h, own, n);
    if constexpr (C::kStates == 2) {
      c = at<kFull>(b.c, own, n);
      new_c = at<kFull>(b.new_c, own, n);
      if (b.grad_new_c) grad_c = at<kFull>(b.grad_new_c, own, n);
    }
    C::backward(saved, h, c, new_h, new_c, grad_h, grad_c, grads, &grad_hn, &grad_prev_h,
                &grad_prev_c);
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) put<kFull>(b.grad_gates_x, gates + g * H, grads[g], n);
    if constexpr (C::kHidden > 0) {
      put<kFull>(b.grad_gates_h, gates, grads[0], n);
      put<kFull>(b.grad_gates_h, gates + H, grads[1], n);
      put<kFull>(b.grad_gates_h, gates + 2 * H, grad_hn, n);
    }
    put<kFull>(b.grad_h, own, grad_prev_h, n);
    if constexpr (C::kStates == 2) put<kFull>(b.grad_c, own, grad_prev_c, n);
  }

  static void forward(const CellForward& f, int64_t row0, int64_t row1) {
    for (int64_t row = row0; row < row1; ++row) {
      int64_t j = 0;
      for (; j + kLanes <= f.hidden; j += kLanes) forward_units<true>(f, row, j, kLanes);
      if (j < f.hidden) forward_units<false>(f, row, j, f.hidden - j);
    }
  }
  static void backward(const CellBackward& b, int64_t row0, int64_t row1) {
    for (int64_t row = row0; row < row1; ++row) {
      int64_t j = 0;
      for (; j + kLanes <= b.hidden; j += kLanes) backward_units<true>(b, row, j, kLanes);
      if (j < b.hidden) backward_units<false>(b, row, j, b.hidden - j);
    }
  }
};

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
