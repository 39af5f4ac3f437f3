// One step of a pointwise cell without its product: what LSTMCell, GRUCell and RNNCell run after
// their matmuls.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/sequence/kernels.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename C, typename S>
struct CellKernel {
  using V = Vec<Compute<S>>;
  static constexpr int kGates = C::kGates, kOthers = kOtherStates<C>, kLanes = V::kLanes;

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
    const int64_t H = f.hidden, gates = row * kGates * H + j;
    Step<C, V> v;
#pragma GCC unroll 8
    for (int g = 0; g < kGates; ++g) {
      v.gates_x[g] = at<kFull>(f.gates_x, gates + g * H, n);
      v.gates_h[g] = at<kFull>(f.gates_h, gates + g * H, n);
    }
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s)
      v.state[s] = at<kFull>(s == 0 ? f.h : f.c, state_at<C>(row, s, H, j), n);
    C::template forward<0>(v);
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s)
      put<kFull>(s == 0 ? f.new_h : f.new_c, state_at<C>(row, s, H, j), v.new_state[s], n);
    if (f.saved)
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k)
        put<kFull>(f.saved, row * C::kSaved * H + k * H + j, v.saved[k], n);
  }

  template <bool kFull>
  SK_ALWAYS static void backward_units(const CellBackward& b, int64_t row, int64_t j, int64_t n) {
    const int64_t H = b.hidden, gates = row * kGates * H + j;
    StepGrad<C, V> v;
#pragma GCC unroll 8
    for (int k = 0; k < C::kSaved; ++k)
      v.saved[k] = at<kFull>(b.saved, row * C::kSaved * H + k * H + j, n);
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s) {
      const int64_t place = state_at<C>(row, s, H, j);
      const void* grad = s == 0 ? b.grad_new_h : b.grad_new_c;
      if (in_set(C::kReadsState, s)) v.state[s] = at<kFull>(s == 0 ? b.h : b.c, place, n);
      if (in_set(C::kReadsNewState, s))
        v.new_state[s] = at<kFull>(s == 0 ? b.new_h : b.new_c, place, n);
      v.grad_new_state[s] = V(0);
      if (grad) v.grad_new_state[s] = at<kFull>(grad, place, n);
    }
    C::template backward<0>(v);
#pragma GCC unroll 8
    for (int g = 0; g < kGates; ++g)
      put<kFull>(b.grad_gates_x, gates + g * H, v.grad_gates_x[g], n);
    if constexpr (C::kSeparate != 0)
#pragma GCC unroll 8
      for (int g = 0; g < kGates; ++g) put<kFull>(b.grad_gates_h, gates + g * H, v.through(g), n);
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s)
      put<kFull>(s == 0 ? b.grad_h : b.grad_c, state_at<C>(row, s, H, j), v.grad_state[s], n);
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
