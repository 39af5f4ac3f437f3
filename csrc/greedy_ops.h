// What greedy decoding has in common on every device: its arguments and their checks. Shapes stand
// in decode_ops.cpp.
#pragma once
#include <tuple>

#include "arguments.h"
#include "make.h"

namespace seqkernels {

struct GreedyInputs {
  Tensor embedding;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh;
  Tensor weight_out;
  Optional bias_out;
  Tensor h_0;
  Optional c_0;
  Tensor start;
  int64_t max_length, eos, pad;
  bool scores;
};
// Tokens, lengths, log_probs, h_n, c_n.
using GreedyResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// `embedding` is its width, `tokens` its rows.
struct GreedySizes {
  int64_t layers, rows, tokens, embedding, hidden, vocabulary;
};

// Checks a call and makes its tensors contiguous.
inline GreedySizes check_greedy(Arguments& a, const CellFacts& cell, GreedyInputs* inputs) {
  GreedyInputs& in = *inputs;
  GreedySizes s{};
  s.layers = in.weight_hh.size();
  SK_CHECK(in.embedding.dim() == 2 && in.weight_out.dim() == 2 && in.start.dim() == 1, a.op,
           ": embedding and weight_out must be matrices, start a vector");
  SK_CHECK(s.layers > 0 && in.weight_ih.size() == in.weight_hh.size(), a.op, ": ",
           in.weight_ih.size(), " weight_ih for ", s.layers, " weight_hh");
  s.rows = in.start.size(0);
  s.tokens = in.embedding.size(0), s.embedding = in.embedding.size(1);
  s.vocabulary = in.weight_out.size(0), s.hidden = in.weight_out.size(1);
  SK_CHECK(s.hidden > 0 && s.vocabulary > 0 && s.vocabulary <= s.tokens, a.op, ": state of ",
           s.hidden, ", scores for ", s.vocabulary, " tokens, embedding of ", s.tokens);
  for (const Tensors* biases : {&in.bias_ih, &in.bias_hh})
    SK_CHECK(biases->empty() || int64_t(biases->size()) == s.layers, a.op, ": ", biases->size(),
             " biases for ", s.layers, " layers");
  const int64_t width = cell.gates * s.hidden;
  in.embedding = a.tensor("embedding", in.embedding, {s.tokens, s.embedding});
  for (int64_t l = 0; l < s.layers; ++l) {
    const int64_t depth = l == 0 ? s.embedding : s.hidden;
    in.weight_ih[l] = a.tensor("weight_ih", in.weight_ih[l], {width, depth});
    in.weight_hh[l] = a.tensor("weight_hh", in.weight_hh[l], {width, s.hidden});
  }
  in.bias_ih = a.tensors("bias_ih", in.bias_ih, {width});
  in.bias_hh = a.tensors("bias_hh", in.bias_hh, {width});
  in.weight_out = a.tensor("weight_out", in.weight_out, {s.vocabulary, s.hidden});
  if (in.bias_out) in.bias_out = a.tensor("bias_out", *in.bias_out, {s.vocabulary});
  in.h_0 = a.tensor("h_0", in.h_0, {s.layers, s.rows, s.hidden});
  check_others(a.op, cell, "c_0", in.c_0);
  if (in.c_0) in.c_0 = a.tensor("c_0", *in.c_0, {s.layers, s.rows, (cell.states - 1) * s.hidden});
  a.integers("start", in.start, {s.rows});
  in.start = torch::stable::contiguous(in.start);
  SK_CHECK(in.max_length >= 0, a.op, ": max_length is ", in.max_length);
  SK_CHECK(in.eos < s.vocabulary, a.op, ": eos ", in.eos, " is outside the vocabulary of ",
           s.vocabulary);
  return s;
}

// The op of a cell, with the signature of its schema; a device gives the function.
template <Cell kCell, auto kFunction>
GreedyResult greedy_op(Tensor embedding, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih,
                       Tensors bias_hh, Tensor weight_out, Optional bias_out, Tensor h_0,
                       Optional c_0, Tensor start, int64_t max_length, int64_t eos, int64_t pad,
                       bool scores) {
  return kFunction(kCell, {embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out,
                           h_0, c_0, start, max_length, eos, pad, scores});
}

}  // namespace seqkernels

// Registers kFunction for every pointwise cell.
#define SK_IMPL_GREEDY(Type, name) \
  if constexpr (kPointwise<Type>)  \
    m.impl(#name "_greedy", TORCH_BOX((&greedy_op<kCellOf<Type>, &greedy>)));
