// A leaky integrator: h' = h + a (tanh(x + U h) - h) with a trained rate a of each unit. Its
// backward reads the h before the step.
#pragma once
#include "cells/contract.h"

namespace seqkernels {

struct LeakyRnn : CellDefaults<1, 1> {
  static constexpr int kSaved = 1, kParameters = 1;
  static constexpr unsigned kReadsState = set_of(0);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<LeakyRnn, T>& v) {
    v.saved[0] = tanh_(v.gates_x[0] + v.gates_h[0]);
    v.new_state[0] = v.state[0] + v.parameter[0] * (v.saved[0] - v.state[0]);
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<LeakyRnn, T>& v) {
    const T rate = v.parameter[0], u = v.saved[0], grad = v.grad_new_state[0];
    v.grad_gates_x[0] = grad * rate * tanh_grad(u);
    v.grad_state[0] = grad * (T(1) - rate);
    v.grad_parameter[0] = grad * (u - v.state[0]);
  }
};

}  // namespace seqkernels
