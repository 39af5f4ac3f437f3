// Long short-term memory: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000,
// as torch.nn.LSTM. Gates i, f, g, o; states h, c.
#pragma once
#include "contract.h"

namespace seqkernels {

struct Lstm : CellDefaults<4, 2> {
  static constexpr int kSaved = 4;
  static constexpr bool kUsesH = false;
  static constexpr unsigned kReadsState = set_of(1), kReadsNewState = set_of(1);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<Lstm, T>& v) {
    const T i = sigmoid(v.gates_x[0] + v.gates_h[0]);
    const T f = sigmoid(v.gates_x[1] + v.gates_h[1]);
    const T g = tanh_(v.gates_x[2] + v.gates_h[2]);
    const T o = sigmoid(v.gates_x[3] + v.gates_h[3]);
    const T c = f * v.state[1] + i * g;
    v.new_state[0] = o * tanh_(c), v.new_state[1] = c;
    v.saved[0] = i, v.saved[1] = f, v.saved[2] = g, v.saved[3] = o;
  }

  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<Lstm, T>& v) {
    const T i = v.saved[0], f = v.saved[1], g = v.saved[2], o = v.saved[3];
    const T tanh_c = tanh_(v.new_state[1]), grad_h = v.grad_new_state[0];
    const T grad_c = v.grad_new_state[1] + grad_h * o * tanh_grad(tanh_c);
    v.grad_gates_x[0] = grad_c * g * sigmoid_grad(i);
    v.grad_gates_x[1] = grad_c * v.state[1] * sigmoid_grad(f);
    v.grad_gates_x[2] = grad_c * i * tanh_grad(g);
    v.grad_gates_x[3] = grad_h * tanh_c * sigmoid_grad(o);
    v.grad_state[0] = T(0), v.grad_state[1] = grad_c * f;
  }
};

}  // namespace seqkernels
