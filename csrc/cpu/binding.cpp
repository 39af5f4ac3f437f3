// The CPU ops: arguments checked, results allocated, kernels run.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <string>

#include "cpu/sequence/kernels.h"
#include "cpu/sequence/schedule.h"
#include "library.h"
#include "sequence_ops.h"

namespace seqkernels {
namespace cpu {
namespace {

// Unlike on other devices, lengths can be looked at before the kernels run.
Layout checked_layout(Arguments& a, const char* name, const Tensor& x, const Tensor& h_0,
                      const RowArgs& rows, int64_t after = 1) {
  Layout l = layout_of(a, name, x, h_0, rows, {}, 0, after);
  for (int64_t n = 0; l.lengths && n < l.batch; ++n)
    SK_CHECK(l.lengths[n] >= 0 && l.lengths[n] <= l.steps, a.op,
             ": lengths must lie between 0 and ", l.steps, " steps, got ", l.lengths[n],
             " for row ", n);
  return l;
}

// What forward and backward are given alike.
template <typename Call, typename Inputs>
Call call_of(Arguments& a, Cell cell, const Layout& l, const Inputs& in) {
  const CellFacts& spec = facts(cell);
  const int64_t H = l.hidden;
  Call c{};
  c.cell = cell, c.dtype = a.dtype;
  c.steps = l.steps, c.batch = l.batch, c.hidden = H;
  c.reset = l.reset, c.reverse = l.reverse;
  check_others(a.op, spec, "c_0", in.c_0);
  c.weight_hh = a.pointer("weight_hh", in.weight_hh, {spec.gates * H, H});
  c.bias_hh = bias_pointer(a, spec, H, in.bias_hh);
  c.h_0 = a.pointer("h_0", in.h_0, l.state_shape(H));
  c.c_0 = a.pointer("c_0", in.c_0, l.state_shape((spec.states - 1) * H));
  return c;
}

// Allocate the results of a sequence and point the call at them.
ForwardResult results_of(Forward& f, const Layout& l, const Tensor& like, bool save) {
  ForwardResult results = new_results(facts(f.cell), l, like, save);
  auto& [output, h_n, c_n, c_sequence, saved] = results;
  f.output = output.mutable_data_ptr(), f.h_n = h_n.mutable_data_ptr();
  f.c_n = c_n.mutable_data_ptr();
  if (c_sequence.numel() > 0) f.c_sequence = c_sequence.mutable_data_ptr();
  if (saved.numel() > 0) f.saved = saved.mutable_data_ptr();
  return results;
}

// One step of few rows is a product and a cell: packing the weights would take most of its time.
bool is_one_step(const Forward& f, const Layout& l) {
  return l.steps == 1 && l.batch <= kFewRows && !l.lengths && !l.packed() && !f.reset &&
         products(f.dtype).few_rows && kernels(f.cell, f.dtype).cell;
}
void run_one_step(const Forward& f, const Tensor& like, ForwardResult& results) {
  auto& [output, h_n, c_n, c_sequence, saved] = results;
  const Kernels& k = kernels(f.cell, f.dtype);
  const int64_t N = f.batch, H = f.hidden, rows = facts(f.cell).gates * H;
  const Tensor gates_h = make(like, {N, rows});
  void* gates = gates_h.mutable_data_ptr();
  run_few_rows(products(f.dtype), {N, H, rows, f.h_0, f.weight_hh, f.bias_hh, gates});
  run_cell(k, {H, f.gates_x, gates, f.h_0, f.c_0, f.output, f.c_n, f.saved}, N);
  std::memcpy(f.h_n, f.output, N * H * k.compute_size);
  if (f.c_sequence) std::memcpy(f.c_sequence, f.c_n, c_n.numel() * k.compute_size);
}

ForwardResult sequence(Cell cell, const ForwardInputs& in) {
  const CellFacts& spec = facts(cell);
  Arguments a({spec.name, "_sequence"}, in.gates_x);
  const Layout l = checked_layout(a, "gates_x", in.gates_x, in.h_0, in.rows);
  auto f = call_of<Forward>(a, cell, l, in);
  f.gates_x = a.pointer("gates_x", in.gates_x, l.shape(spec.gates * l.hidden));
  ForwardResult results = results_of(f, l, in.gates_x, in.save);
  if (is_one_step(f, l))
    run_one_step(f, in.gates_x, results);
  else
    run_forward(f, l);
  return results;
}

ForwardResult lookup(Cell cell, const ForwardInputs& in, const Tensor& symbols) {
  const CellFacts& spec = facts(cell);
  const Tensor& gates = in.gates_x;
  Arguments a({spec.name, "_lookup"}, gates);
  const Layout l = checked_layout(a, "symbols", symbols, in.h_0, in.rows, 0);
  auto f = call_of<Forward>(a, cell, l, in);
  const int64_t V = gates.dim() > 0 ? gates.size(0) : 0;
  f.gates_x = a.pointer("gates", gates, {V, spec.gates * l.hidden});
  f.symbols = a.integers("symbols", symbols, {l.steps, l.batch});
  for (int64_t k = 0; k < l.steps * l.batch; ++k)
    SK_CHECK(f.symbols[k] >= 0 && f.symbols[k] < V, a.op, ": symbols must lie between 0 and ",
             V - 1, ", the rows of gates, got ", f.symbols[k]);
  ForwardResult results = results_of(f, l, gates, in.save);
  run_forward(f, l);
  return results;
}

BackwardResult sequence_backward(Cell cell, const BackwardInputs& in) {
  const CellFacts& spec = facts(cell);
  const Tensor& output = in.given.output;
  Arguments a({spec.name, "_sequence_backward"}, output);
  const Layout l = checked_layout(a, "output", output, in.h_0, in.rows);
  auto b = call_of<Backward>(a, cell, l, in);
  static_cast<GivenPointers&>(b) = given_pointers(a, spec, l, in.given);
  BackwardResult grads = new_grads(spec, l, output);
  auto& [grad_gates_x, grad_gates_h, grad_h_0, grad_c_0] = grads;
  b.grad_gates_x = grad_gates_x.mutable_data_ptr();
  b.grad_gates_h = grad_gates_h.mutable_data_ptr();
  b.grad_h_0 = grad_h_0.mutable_data_ptr(), b.grad_c_0 = grad_c_0.mutable_data_ptr();
  run_backward(b, l);
  return grads;
}

// Allocate the results of one step and run the cell.
CellResult finish_cell(Arguments& a, Cell cell, CellForward& f, const StateSize& s,
                       const Tensor& like, bool save) {
  CellResult results = new_state(facts(cell), s, like, save);
  auto& [new_h, new_c, saved] = results;
  f.hidden = s.hidden;
  f.new_h = new_h.mutable_data_ptr(), f.new_c = new_c.mutable_data_ptr();
  if (saved.numel() > 0) f.saved = saved.mutable_data_ptr();
  run_cell(kernels(cell, a.dtype), f, s.rows);
  return results;
}

CellResult one_cell(Cell cell, const CellInputs& in) {
  const CellFacts& spec = facts(cell);
  Arguments a({spec.name, "_cell"}, in.gates_x);
  const StateSize s(a.op, in.h);
  check_others(a.op, spec, "c", in.c);
  CellForward f{};
  f.gates_x = a.pointer("gates_x", in.gates_x, {s.rows, spec.gates * s.hidden});
  f.gates_h = a.pointer("gates_h", in.gates_h, {s.rows, spec.gates * s.hidden});
  f.h = a.pointer("h", in.h, {s.rows, s.hidden});
  f.c = a.pointer("c", in.c, {s.rows, (spec.states - 1) * s.hidden});
  return finish_cell(a, cell, f, s, in.gates_x, in.save);
}

BackwardResult cell_backward(Cell cell, const CellGiven& in) {
  const CellFacts& spec = facts(cell);
  Arguments a({spec.name, "_cell_backward"}, in.h);
  const StateSize s(a.op, in.h);
  CellBackward b{};
  b.hidden = s.hidden;
  static_cast<CellPointers&>(b) = cell_pointers(a, spec, s, in);
  BackwardResult grads = new_cell_grads(spec, s, in.h);
  auto& [grad_gates_x, grad_gates_h, grad_h, grad_c] = grads;
  b.grad_gates_x = grad_gates_x.mutable_data_ptr();
  b.grad_gates_h = grad_gates_h.mutable_data_ptr();
  b.grad_h = grad_h.mutable_data_ptr(), b.grad_c = grad_c.mutable_data_ptr();
  run_cell_backward(kernels(cell, a.dtype), b, s.rows);
  return grads;
}

template <typename C>
ForwardResult lookup_op(Tensor gates, Tensor symbols, Tensor weight_hh, Optional bias_hh,
                        Tensor h_0, Optional c_0, Optional lengths, bool reverse) {
  const RowArgs rows{lengths, {}, {}, reverse};
  return lookup(kCellOf<C>, {gates, weight_hh, bias_hh, h_0, c_0, rows, true}, symbols);
}

// One step of few rows, products included.
template <typename C>
CellResult step_op(Tensor x, Tensor weight_ih, Tensor weight_hh, Optional bias_ih, Optional bias_hh,
                   Tensor h, Optional c, bool save) {
  const CellFacts& spec = facts(kCellOf<C>);
  Arguments a({spec.name, "_step"}, x);
  SK_CHECK(x.dim() == 2, a.op, ": expected x of size [N, I], got ", text(sizes_of(x)));
  const StateSize s(a.op, h);
  const int64_t N = x.size(0), I = x.size(1), H = s.hidden, rows = spec.gates * H;
  const Products& p = products(a.dtype);
  SK_CHECK(p.few_rows, a.op, ": expected float32 or float64 tensors");
  check_others(a.op, spec, "c", c);
  CellForward f{};
  f.h = a.pointer("h", h, {N, H});
  f.c = a.pointer("c", c, {N, (spec.states - 1) * H});
  const Tensor gates = make(x, {2, N, rows});
  char* gates_x = static_cast<char*>(gates.mutable_data_ptr());
  char* gates_h = gates_x + N * rows * p.compute_size;
  run_few_rows(p,
               {N, I, rows, a.pointer("x", x, {N, I}), a.pointer("weight_ih", weight_ih, {rows, I}),
                a.pointer("bias_ih", bias_ih, {rows}), gates_x});
  run_few_rows(p, {N, H, rows, f.h, a.pointer("weight_hh", weight_hh, {rows, H}),
                   a.pointer("bias_hh", bias_hh, {rows}), gates_h});
  f.gates_x = gates_x, f.gates_h = gates_h;
  return finish_cell(a, kCellOf<C>, f, s, x, save);
}

std::string cpu_isa() { return isa_name(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CPU, m) {
#define SK_IMPL(Type, name)                                                              \
  {                                                                                      \
    using Own = OpsOf<kCellOf<Type>>;                                                    \
    m.impl(#name "_sequence", TORCH_BOX((&Own::forward<&sequence>)));                    \
    m.impl(#name "_sequence_backward", TORCH_BOX((&Own::backward<&sequence_backward>))); \
    m.impl(#name "_lookup", TORCH_BOX((&lookup_op<Type>)));                              \
    if constexpr (kPointwise<Type>) {                                                    \
      m.impl(#name "_step", TORCH_BOX((&step_op<Type>)));                                \
      m.impl(#name "_cell", TORCH_BOX((&Own::cell<&one_cell>)));                         \
      m.impl(#name "_cell_backward", TORCH_BOX((&Own::cell_backward<&cell_backward>)));  \
    }                                                                                    \
  }
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
}

}  // namespace cpu
}  // namespace seqkernels
