// Gated recurrent unit with the reset gate after the product, as torch.nn.GRU and cuDNN. Gates r,
// z, n; state h.
#pragma once
#include "contract.h"

namespace seqkernels {

struct Gru : CellDefaults<3, 1> {
  static constexpr int kSaved = 4;
  static constexpr unsigned kReadsState = set_of(0), kSeparate = set_of(2);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<Gru, T>& v) {
    const T r = sigmoid(v.gates_x[0] + v.gates_h[0]);
    const T z = sigmoid(v.gates_x[1] + v.gates_h[1]);
    const T n = tanh_(v.gates_x[2] + r * v.gates_h[2]);
    v.new_state[0] = n + z * (v.state[0] - n);
    v.saved[0] = r, v.saved[1] = z, v.saved[2] = n, v.saved[3] = v.gates_h[2];
  }

  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<Gru, T>& v) {
    const T r = v.saved[0], z = v.saved[1], n = v.saved[2], gate_hn = v.saved[3];
    const T grad_h = v.grad_new_state[0], grad_n = grad_h * (T(1) - z) * tanh_grad(n);
    v.grad_gates_x[0] = grad_n * gate_hn * sigmoid_grad(r);
    v.grad_gates_x[1] = grad_h * (v.state[0] - n) * sigmoid_grad(z);
    v.grad_gates_x[2] = grad_n;
    v.grad_gates_h[2] = grad_n * r;
    v.grad_state[0] = grad_h * z;
  }
};

}  // namespace seqkernels
