// Operator schemas, one set for every cell. Each backend registers its own implementation.
//
// Shapes, with G gates, S states, P parameters and K saved values of the cell (cells/contract.h):
//   gates_x     [T, N, G*H]: weight_ih x + bias_ih at every step; packed: [sum(batch_sizes), G*H]
//   weight_hh   [G*H, H]
//   bias_hh     [(G + P)*H]: the biases and behind them the parameters, which the backward reads
//   h_0         [N, H]; c_0 [N, (S - 1)*H]: the other states side by side
//   lengths     [N] int64 on gates_x's device: a row past its end keeps its state and gives zeros
//   batch_sizes [T] int64 on the CPU, falling: the input is packed (rows sorted by length)
//   reset       [T, N] bool: the state is zeroed before that step is computed, in the order of the
//               run: a reverse one comes to it from the step after
//   reverse     steps are taken from a row's last to its first; results stay at their own step
//   save        write c_sequence and saved, as the backward needs them; otherwise both are empty
//   output [T, N, H], c_sequence [T, N, (S - 1)*H], saved [T, N, K*H], or packed
//   h_n [N, H], c_n [N, (S - 1)*H]; what a cell does not have is a tensor of no elements
//   grad_gates_h holds the gradients of the separate gates (for gru, n) and of the parameters,
//               [T, N, their number * H]
//
// rows_product, on the CPU in float32 and float64: the gradient of a weight from gate gradients
// side by side, each [R, M], and inputs one on another, together [R, K]: [sum of M, K].
//
// lookup, on the CPU: the sequence whose gates_x at step t of row n are gates[symbols[t, n]], with
//   gates [V, G*H] and symbols [T, N] int64; it always saves
//
// Several recurrences in one launch. Directions, first forward, then reverse, lie side by side:
//   gates_x [T, N, 2*G*H], output, c_sequence [T, N, 2*H], saved [T, N, 2*K*H]; states [2, N, H];
//   reset [2, T, N]
// Layers, each fed by the one below, lie one after another; all but the first project their input
// themselves, with weight_ih [G*H, H] and bias_ih:
//   gates_x [T, N, G*H] of the first, output, c_sequence [L, T, N, H], saved [L, T, N, K*H]
// Their backward is given gradients of the last layer's sequences, [T, N, H], and of all states.
#include <torch/csrc/stable/library.h>

#include "cells/all.h"
#include "library.h"

#define SK_SEQUENCE                                                                                \
  "(Tensor gates_x, Tensor weight_hh, Tensor? bias_hh, Tensor h_0, Tensor? c_0, Tensor? lengths, " \
  "Tensor? batch_sizes, Tensor? reset, bool reverse, bool save) -> "                               \
  "(Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
#define SK_SEQUENCE_BACKWARD                                                                       \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_sequence, "            \
  "Tensor weight_hh, Tensor? bias_hh, Tensor h_0, Tensor? c_0, Tensor output, Tensor c_sequence, " \
  "Tensor saved, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse) -> "           \
  "(Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h_0, Tensor grad_c_0)"
#define SK_LOOKUP                                                                               \
  "(Tensor gates, Tensor symbols, Tensor weight_hh, Tensor? bias_hh, Tensor h_0, Tensor? c_0, " \
  "Tensor? lengths, bool reverse) -> "                                                          \
  "(Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
#define SK_DIRECTIONS                                                                \
  "(Tensor gates_x, Tensor[] weight_hh, Tensor[] bias_hh, Tensor h_0, Tensor? c_0, " \
  "Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool save) -> "              \
  "(Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
#define SK_DIRECTIONS_BACKWARD                                                                \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_sequence, "       \
  "Tensor[] weight_hh, Tensor[] bias_hh, Tensor h_0, Tensor? c_0, Tensor output, "            \
  "Tensor c_sequence, Tensor saved, Tensor? lengths, Tensor? batch_sizes, Tensor? reset) -> " \
  "(Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h_0, Tensor grad_c_0)"
#define SK_LAYERS                                                                                 \
  "(Tensor gates_x, Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_ih, Tensor[] bias_hh, " \
  "Tensor h_0, Tensor? c_0, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool save) -> "  \
  "(Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
#define SK_LAYERS_BACKWARD                                                                     \
  "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_sequence, "        \
  "Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_hh, Tensor h_0, Tensor? c_0, Tensor " \
  "output, "                                                                                   \
  "Tensor c_sequence, Tensor saved, Tensor? lengths, Tensor? batch_sizes, Tensor? reset) -> "  \
  "(Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h_0, Tensor grad_c_0)"
// One step, pointwise: gates_x, gates_h [N, G*H], state [N, H]. Here grad_gates_h is whole for gru.
#define SK_CELL                                                          \
  "(Tensor gates_x, Tensor gates_h, Tensor h, Tensor? c, bool save) -> " \
  "(Tensor new_h, Tensor new_c, Tensor saved)"
#define SK_CELL_BACKWARD                                                                       \
  "(Tensor? grad_new_h, Tensor? grad_new_c, Tensor h, Tensor? c, Tensor new_h, Tensor new_c, " \
  "Tensor saved) -> (Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h, Tensor grad_c)"

// One step of few rows, products included; CPU, float32 and float64. x [N, I], state [N, H].
#define SK_STEP                                                                                 \
  "(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor h, " \
  "Tensor? c, bool save) -> (Tensor new_h, Tensor new_c, Tensor saved)"

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  using namespace seqkernels;
#define SK_DEFINE(Type, name)                                            \
  m.def(#name "_sequence" SK_SEQUENCE);                                  \
  m.def(#name "_sequence_backward" SK_SEQUENCE_BACKWARD);                \
  m.def(#name "_lookup" SK_LOOKUP);                                      \
  m.def(#name "_sequence_persistent" SK_SEQUENCE);                       \
  m.def(#name "_sequence_persistent_backward" SK_SEQUENCE_BACKWARD);     \
  m.def(#name "_directions_persistent" SK_DIRECTIONS);                   \
  m.def(#name "_directions_persistent_backward" SK_DIRECTIONS_BACKWARD); \
  m.def(#name "_layers_persistent" SK_LAYERS);                           \
  m.def(#name "_layers_persistent_backward" SK_LAYERS_BACKWARD);         \
  if constexpr (kPointwise<Type>) {                                      \
    m.def(#name "_cell" SK_CELL);                                        \
    m.def(#name "_cell_backward" SK_CELL_BACKWARD);                      \
    m.def(#name "_step" SK_STEP);                                        \
  }
  SK_FOR_EACH_CELL(SK_DEFINE)
#undef SK_DEFINE
  m.def("rows_product(Tensor[] grads, Tensor[] x) -> Tensor");
}
