// What the sequence and cell ops of every device share: their arguments, the checks of these, and
// new tensors for their results. Shapes stand in ops.cpp.
#pragma once
#include <tuple>

#include "arguments.h"
#include "given.h"
#include "layout.h"
#include "make.h"

namespace seqkernels {

// What an op is told of the rows of its sequence.
struct RowArgs {
  Optional lengths, batch_sizes, reset;
  bool reverse = false;
};
struct ForwardInputs {
  Tensor gates_x, weight_hh;
  Optional bias_hh;
  Tensor h_0;
  Optional c_0;
  RowArgs rows;
  bool save;
};
// What a backward is given beside its weights: gradients, and results of the forward.
struct Given {
  Optional grad_output, grad_h_n, grad_c_n, grad_c_sequence;
  Tensor output, c_sequence, saved;
};
struct BackwardInputs {
  Given given;
  Tensor weight_hh;
  Optional bias_hh;
  Tensor h_0;
  Optional c_0;
  RowArgs rows;
};
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using CellResult = std::tuple<Tensor, Tensor, Tensor>;

// Offsets of packed rows, after a check of their counts. `total` is what the tensor `name` has.
inline void set_batch_sizes(const Op& op, const char* name, int64_t total, Layout* l) {
  l->offsets.assign(1, 0);
  for (int64_t t = 0; t < l->steps; ++t) {
    const int64_t size = l->batch_sizes[t], before = t > 0 ? l->batch_sizes[t - 1] : l->batch;
    SK_CHECK(t > 0 || size == l->batch, op, ": batch_sizes begins with ", size, " rows, h_0 has ",
             l->batch);
    SK_CHECK(size > 0 && size <= before, op, ": batch_sizes must be positive and fall, got ", size,
             " after ", before);
    l->offsets.push_back(l->offsets.back() + size);
  }
  SK_CHECK(l->steps > 0, op, ": batch_sizes is empty");
  SK_CHECK(l->all_rows() == total, op, ": batch_sizes add up to ", l->all_rows(), " rows, ", name,
           " has ", total);
}

// The layout of a call.
//
// Args:
//   name, x: a tensor over time.
//   parts: recurrences of the call.
//   before, after: dimensions of x before and after steps and rows.
inline Layout layout_of(Arguments& a, const char* name, const Tensor& x, const Tensor& h_0,
                        const RowArgs& args, Parts parts = {}, int64_t before = 0,
                        int64_t after = 1) {
  const Op& op = a.op;
  Layout l;
  const int64_t dims = parts.count > 0 ? 3 : 2;
  SK_CHECK(h_0.dim() == dims && (parts.count == 0 || h_0.size(0) == parts.count), op,
           ": expected h_0 of size [", parts.count > 0 ? std::to_string(parts.count) + ", " : "",
           "N, H], got ", text(sizes_of(h_0)));
  l.parts = parts, l.reverse = args.reverse;
  l.batch = h_0.size(dims - 2), l.hidden = h_0.size(dims - 1);
  SK_CHECK(l.hidden > 0, op, ": expected a hidden size above 0, got ", text(sizes_of(h_0)));
  if (args.batch_sizes) {
    SK_CHECK(!args.lengths && !args.reset, op,
             ": batch_sizes cannot be given together with lengths or reset");
    SK_CHECK(x.dim() == before + 1 + after, op, ": expected packed ", name, " of ",
             before + 1 + after, " dimensions, got ", text(sizes_of(x)));
    l.batch_sizes = a.host_integers("batch_sizes", *args.batch_sizes);
    l.steps = args.batch_sizes->size(0);
    set_batch_sizes(op, name, x.size(before), &l);
    return l;
  }
  SK_CHECK(x.dim() == before + 2 + after, op, ": expected ", name, " of ", before + 2 + after,
           " dimensions, got ", text(sizes_of(x)));
  l.steps = x.size(before);
  l.lengths = a.integers("lengths", args.lengths, {l.batch});
  Sizes marks{l.steps, l.batch};
  if (parts.count > 0 && !parts.stacked) marks.insert(marks.begin(), parts.count);
  l.reset = a.booleans("reset", args.reset, marks);
  return l;
}

// New results: what the cell does not have, or is not to be saved, is a tensor of no elements.
inline ForwardResult new_results(const CellFacts& cell, const Layout& l, const Tensor& like,
                                 bool save) {
  const int64_t hidden = l.hidden, others = (cell.states - 1) * hidden;
  return {make(like, l.shape(hidden)), make(like, l.state_shape(hidden)),
          make_if(others > 0, like, l.state_shape(others)),
          make_if(others > 0 && save, like, l.shape(others)),
          make_if(cell.saved > 0 && save, like, l.shape(cell.saved * hidden))};
}
inline BackwardResult new_grads(const CellFacts& cell, const Layout& l, const Tensor& like) {
  const int64_t hidden = l.hidden, others = (cell.states - 1) * hidden;
  const int64_t separate = separate_columns(cell) * hidden;
  return {make(like, l.shape(cell.gates * hidden)), make_if(separate > 0, like, l.shape(separate)),
          make(like, l.state_shape(hidden)), make_if(others > 0, like, l.state_shape(others))};
}

inline GivenPointers given_pointers(Arguments& a, const CellFacts& cell, const Layout& l,
                                    const Given& g) {
  const int64_t hidden = l.hidden, others = (cell.states - 1) * hidden;
  GivenPointers p{};
  p.grad_output = a.pointer("grad_output", g.grad_output, l.input_shape(hidden));
  p.grad_h_n = a.pointer("grad_h_n", g.grad_h_n, l.state_shape(hidden));
  p.output = a.pointer("output", g.output, l.shape(hidden));
  if (others > 0) {
    p.grad_c_n = a.pointer("grad_c_n", g.grad_c_n, l.state_shape(others));
    p.grad_c_sequence = a.pointer("grad_c_sequence", g.grad_c_sequence, l.input_shape(others));
    p.c_sequence = a.pointer("c_sequence", g.c_sequence, l.shape(others));
  }
  if (cell.saved > 0) p.saved = a.pointer("saved", g.saved, l.shape(cell.saved * hidden));
  return p;
}

// One step without its products.
struct CellInputs {
  Tensor gates_x, gates_h, h;
  Optional c;
  bool save;
};
struct CellGiven {
  Optional grad_new_h, grad_new_c;
  Tensor h;
  Optional c;
  Tensor new_h, new_c, saved;
};
// Rows and hidden units of a state.
struct StateSize {
  int64_t rows, hidden;
  StateSize(const Op& op, const Tensor& h) {
    SK_CHECK(h.dim() == 2, op, ": expected h of size [N, H], got ", text(sizes_of(h)));
    rows = h.size(0), hidden = h.size(1);
  }
};
inline CellPointers cell_pointers(Arguments& a, const CellFacts& cell, const StateSize& s,
                                  const CellGiven& g) {
  const Sizes h{s.rows, s.hidden}, others{s.rows, (cell.states - 1) * s.hidden};
  check_others(a.op, cell, "c", g.c);
  CellPointers p{};
  p.grad_new_h = a.pointer("grad_new_h", g.grad_new_h, h);
  p.h = a.pointer("h", g.h, h), p.new_h = a.pointer("new_h", g.new_h, h);
  if (cell.states > 1) {
    p.grad_new_c = a.pointer("grad_new_c", g.grad_new_c, others);
    p.c = a.pointer("c", g.c, others), p.new_c = a.pointer("new_c", g.new_c, others);
  }
  if (cell.saved > 0) p.saved = a.pointer("saved", g.saved, {s.rows, cell.saved * s.hidden});
  return p;
}
inline CellResult new_state(const CellFacts& cell, const StateSize& s, const Tensor& like,
                            bool save) {
  return {make(like, {s.rows, s.hidden}),
          make_if(cell.states > 1, like, {s.rows, (cell.states - 1) * s.hidden}),
          make_if(cell.saved > 0 && save, like, {s.rows, cell.saved * s.hidden})};
}
inline BackwardResult new_cell_grads(const CellFacts& cell, const StateSize& s,
                                     const Tensor& like) {
  return {make(like, {s.rows, cell.gates * s.hidden}),
          make_if(cell.separate != 0, like, {s.rows, cell.gates * s.hidden}),
          make(like, {s.rows, s.hidden}),
          make_if(cell.states > 1, like, {s.rows, (cell.states - 1) * s.hidden})};
}

// The ops of one cell with the signatures of their schemas, as the dispatcher wants them; a device
// gives the functions.
template <Cell kCell>
struct OpsOf {
  template <auto kFunction>
  static ForwardResult forward(Tensor gates_x, Tensor weight_hh, Optional bias_hh, Tensor h_0,
                               Optional c_0, Optional lengths, Optional batch_sizes, Optional reset,
                               bool reverse, bool save) {
    return kFunction(
        kCell,
        {gates_x, weight_hh, bias_hh, h_0, c_0, {lengths, batch_sizes, reset, reverse}, save});
  }
  template <auto kFunction>
  static BackwardResult backward(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                 Optional grad_c_sequence, Tensor weight_hh, Optional bias_hh,
                                 Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                 Tensor saved, Optional lengths, Optional batch_sizes,
                                 Optional reset, bool reverse) {
    return kFunction(kCell,
                     {{grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved},
                      weight_hh,
                      bias_hh,
                      h_0,
                      c_0,
                      {lengths, batch_sizes, reset, reverse}});
  }
  template <auto kFunction>
  static CellResult cell(Tensor gates_x, Tensor gates_h, Tensor h, Optional c, bool save) {
    return kFunction(kCell, {gates_x, gates_h, h, c, save});
  }
  template <auto kFunction>
  static BackwardResult cell_backward(Optional grad_new_h, Optional grad_new_c, Tensor h,
                                      Optional c, Tensor new_h, Tensor new_c, Tensor saved) {
    return kFunction(kCell, {grad_new_h, grad_new_c, h, c, new_h, new_c, saved});
  }
};

}  // namespace seqkernels
