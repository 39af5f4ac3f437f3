// An LSTM whose input gate is one minus its forget gate, with peepholes from the cell state (Greff
// et al. 2017: CIFG with peepholes). Gates f, g, o; states h, c; parameters: peepholes of f and o.
#pragma once
#include "cells/contract.h"

namespace seqkernels {

struct PeepholeLstm : CellDefaults<3, 2> {
  static constexpr int kSaved = 3, kParameters = 2;
  static constexpr bool kUsesH = false;
  static constexpr unsigned kReadsState = set_of(1), kReadsNewState = set_of(1);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<PeepholeLstm, T>& v) {
    const T c = v.state[1];
    const T f = sigmoid(v.gates_x[0] + v.gates_h[0] + v.parameter[0] * c);
    const T g = tanh_(v.gates_x[1] + v.gates_h[1]);
    const T new_c = g + f * (c - g);
    const T o = sigmoid(v.gates_x[2] + v.gates_h[2] + v.parameter[1] * new_c);
    v.new_state[0] = o * tanh_(new_c), v.new_state[1] = new_c;
    v.saved[0] = f, v.saved[1] = g, v.saved[2] = o;
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<PeepholeLstm, T>& v) {
    const T f = v.saved[0], g = v.saved[1], o = v.saved[2], c = v.state[1], new_c = v.new_state[1];
    const T tanh_c = tanh_(new_c), grad_h = v.grad_new_state[0];
    const T grad_o = grad_h * tanh_c * sigmoid_grad(o);
    const T grad_c = v.grad_new_state[1] + grad_h * o * tanh_grad(tanh_c) + grad_o * v.parameter[1];
    const T grad_f = grad_c * (c - g) * sigmoid_grad(f);
    v.grad_gates_x[0] = grad_f;
    v.grad_gates_x[1] = grad_c * (T(1) - f) * tanh_grad(g);
    v.grad_gates_x[2] = grad_o;
    v.grad_state[0] = T(0), v.grad_state[1] = grad_c * f + grad_f * v.parameter[0];
    v.grad_parameter[0] = grad_f * c, v.grad_parameter[1] = grad_o * new_c;
  }
};

}  // namespace seqkernels
