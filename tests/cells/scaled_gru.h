// A GRU with the reset gate before the product, whose r * h is scaled by a trained factor of each
// unit, and whose candidate sees h through another. Gates r, z, n; state h; two stages, each with a
// parameter. The operand of the second product is saved: the gradient of its weights needs it.
#pragma once
#include "cells/contract.h"

namespace seqkernels {

struct ScaledGru : CellDefaults<3, 1> {
  static constexpr int kSaved = 4, kParameters = 2;
  static constexpr Stage kStages[] = {{0, 2, set_of(0), set_of(0, 1, 3), set_of(0)},
                                      {2, 1, set_of(1, 2), set_of(2), set_of(1)}};
  static constexpr unsigned kKept = set_of(1), kReadsState = set_of(0);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<ScaledGru, T>& v) {
    const T h = v.state[0];
    if constexpr (kStage == 0) {
      v.saved[0] = sigmoid(v.gates_x[0] + v.gates_h[0]);
      v.saved[1] = sigmoid(v.gates_x[1] + v.gates_h[1]);
      v.operand = v.saved[3] = v.parameter[0] * v.saved[0] * h;
    } else {
      const T n = tanh_(v.gates_x[2] + v.gates_h[2] + v.parameter[1] * h);
      v.saved[2] = n;
      v.new_state[0] = n + v.saved[1] * (h - n);
    }
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<ScaledGru, T>& v) {
    const T r = v.saved[0], h = v.state[0];
    if constexpr (kStage == 1) {
      const T z = v.saved[1], n = v.saved[2], grad_h = v.grad_new_state[0];
      const T grad_n = grad_h * (T(1) - z) * tanh_grad(n);
      v.grad_gates_x[1] = grad_h * (h - n) * sigmoid_grad(z);
      v.grad_gates_x[2] = grad_n;
      v.grad_parameter[1] = grad_n * h;
      v.grad_state[0] = grad_h * z + grad_n * v.parameter[1];
    } else {
      const T scaled = v.grad_operand * v.parameter[0];
      v.grad_gates_x[0] = scaled * h * sigmoid_grad(r);
      v.grad_parameter[0] = v.grad_operand * r * h;
      v.grad_state[0] = v.grad_state[0] + scaled * r;
    }
  }
};

}  // namespace seqkernels
