// Operator schemas of fused greedy decoding: embedding, stacked cells, output projection, arg-max
// and feedback of the chosen token, up to max_length times in one call.
//
// Shapes, with L layers, G gates of the cell, E the embedding's width, V the scored vocabulary:
//   embedding  [V', E], V' >= V
//   weight_ih  L tensors, [G*H, E] and then [G*H, H]; weight_hh L tensors [G*H, H]
//   bias_ih, bias_hh  L tensors [G*H], or none for layers without biases
//   weight_out [V, H], bias_out [V]
//   h_0 [L, N, H]; c_0 [L, N, (S - 1)*H]: the other states side by side
//   start      [N] int64: the token that each row reads first
//   eos        a row that has chosen it is finished; -1: there is none
//   pad        what stands in `tokens` after a row's end
//   tokens     [N, max_length] int64
//   lengths    [N] int64: tokens of each row, eos included
//   log_probs  [N]: sum of the log-probabilities of a row's tokens, float64 for float64, else
//              float32; without `scores` a tensor of no elements
//   h_n, c_n   as h_0 and c_0: the state from which a row's last token was chosen
#include <torch/csrc/stable/library.h>

#include "cells/all.h"
#include "library.h"

#define SK_GREEDY                                                                             \
  "(Tensor embedding, Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_ih, Tensor[] "    \
  "bias_hh, Tensor weight_out, Tensor? bias_out, Tensor h_0, Tensor? c_0, Tensor start, int " \
  "max_length, int eos, int pad, bool scores) -> (Tensor tokens, Tensor lengths, Tensor "     \
  "log_probs, Tensor h_n, Tensor c_n)"

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) {
  using namespace seqkernels;
#define SK_DEFINE(Type, name) \
  if constexpr (kPointwise<Type>) m.def(#name "_greedy" SK_GREEDY);
  SK_FOR_EACH_CELL(SK_DEFINE)
#undef SK_DEFINE
  // Why the kernel of embedding's device cannot run a call of these sizes; empty if it can.
  m.def(
      "greedy_refusal(Tensor embedding, int gates, int states, int layers, int rows, int hidden, "
      "int vocabulary) -> str");
}
