// Gated recurrent unit with the reset gate before the product (Cho et al. 2014, equations 5 to 8).
// Gates r, z, n; state h. A step has two products and therefore two stages:
//   0:  r, z and r * h from x_r + U_r h and x_z + U_z h
//   1:  n = tanh(x_n + U_n (r * h)),  h' = z h + (1 - z) n
#pragma once
#include "contract.h"

namespace seqkernels {

struct GruResetBefore : CellDefaults<3, 1> {
  static constexpr int kSaved = 3;
  static constexpr Stage kStages[] = {{0, 2, set_of(0), set_of(0, 1), 0},
                                      {2, 1, set_of(1, 2), set_of(2), 0}};
  static constexpr unsigned kKept = set_of(1), kReadsState = set_of(0);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<GruResetBefore, T>& v) {
    if constexpr (kStage == 0) {
      v.saved[0] = sigmoid(v.gates_x[0] + v.gates_h[0]);
      v.saved[1] = sigmoid(v.gates_x[1] + v.gates_h[1]);
      v.operand = v.saved[0] * v.state[0];
    } else {
      const T z = v.saved[1], n = tanh_(v.gates_x[2] + v.gates_h[2]);
      v.saved[2] = n;
      v.new_state[0] = n + z * (v.state[0] - n);
    }
  }

  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<GruResetBefore, T>& v) {
    if constexpr (kStage == 1) {
      const T z = v.saved[1], n = v.saved[2], grad_h = v.grad_new_state[0];
      v.grad_gates_x[1] = grad_h * (v.state[0] - n) * sigmoid_grad(z);
      v.grad_gates_x[2] = grad_h * (T(1) - z) * tanh_grad(n);
      v.grad_state[0] = grad_h * z;
    } else {
      const T r = v.saved[0];
      v.grad_gates_x[0] = v.grad_operand * v.state[0] * sigmoid_grad(r);
      v.grad_state[0] = v.grad_state[0] + v.grad_operand * r;
    }
  }
};

}  // namespace seqkernels
