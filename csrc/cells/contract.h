// What a cell declares, and what its functions are given: all that a kernel may know of it.
//
// A cell maps pre-activations and the state of ONE hidden unit to the unit's new state. It knows
// nothing of batches, time, tensors, threads or storage types; kernels know nothing of its
// mathematics, and load and store what it declares:
//
//   struct MyCell : CellDefaults<gates, states> {
//     template <int kStage, typename T>
//     SK_INLINE static void forward(Step<MyCell, T>& v);
//     template <int kStage, typename T>
//     SK_INLINE static void backward(StepGrad<MyCell, T>& v);
//   };
//
// `T` is float or double, or a class of several lanes that has the usual operators, a constructor
// that broadcasts a scalar, and the functions of math.h in its own namespace. Gates stand in
// torch's order. Each cell is tested against its step in seqkernels/reference.py in float64.
#pragma once
#include <cstdint>

#include "math.h"

namespace seqkernels {

// Sets of gates, states or saved values: bit k stands for number k.
template <typename... Numbers>
SK_INLINE constexpr unsigned set_of(Numbers... numbers) {
  return (0u | ... | (1u << numbers));
}
SK_INLINE constexpr bool in_set(unsigned set, int number) { return (set >> number & 1u) != 0; }
SK_INLINE constexpr int size_of_set(unsigned set) {
  int size = 0;
  for (; set != 0; set &= set - 1) ++size;
  return size;
}
// How many members stand before a number.
SK_INLINE constexpr int place_in_set(unsigned set, int number) {
  return size_of_set(set & ((1u << number) - 1u));
}

// One recurrent product of a step and the pointwise work after it. The product of the first stage
// reads h, the first state; that of a later one reads the `operand` of the stage before.
struct Stage {
  int first_gate, gates;  // rows of weight_hh, in units of the hidden size
  unsigned grads;         // gates whose gradients this stage's backward computes
  unsigned saves;         // values among `saved` that this stage's forward sets
  unsigned parameters;    // parameters whose gradients this stage's backward computes
};

// What is declared unless a cell says otherwise: one stage, nothing kept, nothing read.
template <int gates, int states>
struct CellDefaults {
  // Pre-activations, and states: the first is h, the output, which the products read.
  static constexpr int kGates = gates, kStates = states;
  // Values that the forward keeps for the backward, beside the states.
  static constexpr int kSaved = 0;
  // Vectors of one value per hidden unit beside the biases. They follow these in bias_hh.
  static constexpr int kParameters = 0;
  static constexpr Stage kStages[] = {{0, gates, ~0u, ~0u, ~0u}};
  // Saved values that a later stage of the same step reads.
  static constexpr unsigned kKept = 0;
  // Whether h enters the step beside its products too.
  static constexpr bool kUsesH = true;
  // States that the backward reads: before the step, and after it.
  static constexpr unsigned kReadsState = 0, kReadsNewState = 0;
  // Gates whose gradient on the recurrent side, grad_gates_h, is not that of the input side.
  static constexpr unsigned kSeparate = 0;
};

template <typename C>
constexpr int kStageCount = sizeof(C::kStages) / sizeof(Stage);
// Columns / H of what the backward gives beside grad_gates_x: gradients of the separate gates, then
// of the parameters.
template <typename C>
constexpr int kSeparateColumns = size_of_set(C::kSeparate) + C::kParameters;
// States beside h. They stand side by side in a row: c is [N, (kStates - 1) * H].
template <typename C>
constexpr int kOtherStates = C::kStates - 1;
// Where state `j` of a row lies in its tensor, which holds h or all others side by side.
template <typename C, typename Hidden, typename Unit>
SK_INLINE int64_t state_at(int64_t row, int j, Hidden hidden, Unit unit) {
  return (j == 0 ? row : row * kOtherStates<C> + j - 1) * hidden + unit;
}
// One step needs gates and state alone, so it is an op of its own.
template <typename C>
constexpr bool kPointwise = kStageCount<C> == 1 && C::kParameters == 0;
// Length of an array that may have no elements.
SK_INLINE constexpr int room(int count) { return count > 0 ? count : 1; }

// One unit in one step. The last stage sets `new_state`.
template <typename C, typename T>
struct Step {
  T gates_x[C::kGates];  // weight_ih x + bias_ih
  T gates_h[C::kGates];  // weight_hh h + bias_hh, of this stage and those before it
  T state[C::kStates];
  T parameter[room(C::kParameters)];
  T operand;  // what the product of the next stage reads
  T new_state[C::kStates];
  T saved[room(C::kSaved)];  // of earlier stages only what the cell keeps
};

// The same for the backward, which runs the stages from the last to the first. The last is given
// grad_new_state and sets grad_state; an earlier one is given grad_operand and adds to grad_state.
template <typename C, typename T>
struct StepGrad {
  T saved[room(C::kSaved)];
  T state[C::kStates], new_state[C::kStates];  // those that the cell reads
  T parameter[room(C::kParameters)];
  T grad_new_state[C::kStates];
  T grad_operand;  // of what the product of the next stage reads
  T grad_gates_x[C::kGates];
  T grad_gates_h[C::kGates];  // separate gates alone
  T grad_state[C::kStates];   // without what flows through the products
  T grad_parameter[room(C::kParameters)];

  // What flows back through a product from a gate.
  SK_INLINE const T& through(int gate) const {
    return in_set(C::kSeparate, gate) ? grad_gates_h[gate] : grad_gates_x[gate];
  }
};

}  // namespace seqkernels
