// The simple recurrent network (Elman 1990), as torch.nn.RNN. One gate; state h.
#pragma once
#include "contract.h"

namespace seqkernels {

// nonlinearity="tanh".
struct RnnTanh : CellDefaults<1, 1> {
  static constexpr bool kUsesH = false;
  static constexpr unsigned kReadsNewState = set_of(0);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<RnnTanh, T>& v) {
    v.new_state[0] = tanh_(v.gates_x[0] + v.gates_h[0]);
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<RnnTanh, T>& v) {
    v.grad_gates_x[0] = v.grad_new_state[0] * tanh_grad(v.new_state[0]);
    v.grad_state[0] = T(0);
  }
};

// nonlinearity="relu".
struct RnnRelu : CellDefaults<1, 1> {
  static constexpr bool kUsesH = false;
  static constexpr unsigned kReadsNewState = set_of(0);

  template <int kStage, typename T>
  SK_INLINE static void forward(Step<RnnRelu, T>& v) {
    v.new_state[0] = relu_(v.gates_x[0] + v.gates_h[0]);
  }
  template <int kStage, typename T>
  SK_INLINE static void backward(StepGrad<RnnRelu, T>& v) {
    v.grad_gates_x[0] = v.grad_new_state[0] * positive_(v.new_state[0]);
    v.grad_state[0] = T(0);
  }
};

}  // namespace seqkernels
