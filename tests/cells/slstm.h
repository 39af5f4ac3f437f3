// The sLSTM (Beck et al. 2024, xLSTM, equations 8 to 17) with exponential input and forget gates
// and a stabiliser. Gates i, f, z, o; states h, cell c, normaliser n, stabiliser m.
#pragma once
#include "cells/contract.h"

namespace seqkernels {

struct Slstm : CellDefaults<4, 4> {
  static constexpr int kSaved = 5;
  static constexpr bool kUsesH = false;
  static constexpr unsigned kReadsState = set_of(1, 2), kReadsNewState = set_of(1, 2);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<Slstm, T>& v) {
    const T log_i = v.gates_x[0] + v.gates_h[0];
    const T log_f = v.gates_x[1] + v.gates_h[1] + v.state[3];
    const T m = log_i + relu_(log_f - log_i);
    const T i = exp_(log_i - m), f = exp_(log_f - m);
    const T z = tanh_(v.gates_x[2] + v.gates_h[2]), o = sigmoid(v.gates_x[3] + v.gates_h[3]);
    const T c = f * v.state[1] + i * z, n = f * v.state[2] + i;
    v.new_state[0] = o * (c / n);
    v.new_state[1] = c, v.new_state[2] = n, v.new_state[3] = m;
    v.saved[0] = i, v.saved[1] = f, v.saved[2] = z, v.saved[3] = o;
    v.saved[4] = positive_(log_f - log_i);
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<Slstm, T>& v) {
    const T i = v.saved[0], f = v.saved[1], z = v.saved[2], o = v.saved[3], forgets = v.saved[4];
    const T grad_h = v.grad_new_state[0], share = grad_h * o / v.new_state[2];
    const T ratio = v.new_state[1] / v.new_state[2];
    const T grad_c = v.grad_new_state[1] + share, grad_n = v.grad_new_state[2] - share * ratio;
    const T grad_i = (grad_c * z + grad_n) * i;
    const T grad_f = (grad_c * v.state[1] + grad_n * v.state[2]) * f;
    const T grad_m = v.grad_new_state[3] - grad_i - grad_f;
    v.grad_gates_x[0] = grad_i + (T(1) - forgets) * grad_m;
    v.grad_gates_x[1] = grad_f + forgets * grad_m;
    v.grad_gates_x[2] = grad_c * i * tanh_grad(z);
    v.grad_gates_x[3] = grad_h * ratio * sigmoid_grad(o);
    v.grad_state[0] = T(0), v.grad_state[1] = grad_c * f, v.grad_state[2] = grad_n * f;
    v.grad_state[3] = v.grad_gates_x[1];
  }
};

}  // namespace seqkernels
