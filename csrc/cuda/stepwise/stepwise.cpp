// The stepwise schedule: for each stage of a step one product through torch and one cell kernel. It
// takes every shape and dtype, never waits for the device and can be captured in a CUDA graph. Its
// products follow torch's own switch for TF32 in matrix products.
#include "cuda/tensors.h"

namespace seqkernels {
namespace {

using torch::stable::flatten;
using torch::stable::narrow;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::transpose;

// Flags of step t, [N], or null.
const bool* flags_at(const Layout& l, int64_t t) {
  return l.reset == nullptr ? nullptr : l.reset + t * l.batch;
}
// narrow() of torch takes no const tensor.
Tensor part(Tensor x, int64_t dim, int64_t first, int64_t count) {
  return narrow(x, dim, first, count);
}

}  // namespace

ForwardResult stepwise_forward(Cell cell, const ForwardInputs& inputs) {
  const CellFacts& spec = facts(cell);
  Arguments args({spec.name, "_sequence"}, inputs.h_0);
  const Op& op = args.op;
  const Layout l = layout_of(args, "gates_x", inputs.gates_x, inputs.h_0, inputs.rows);
  const Dtype dtype = args.dtype;
  const int64_t n = l.batch, hidden = l.hidden, others = (spec.states - 1) * hidden;
  check_others(op, spec, "c_0", inputs.c_0);
  const Tensor weight_hh =
      args.tensor("weight_hh", inputs.weight_hh, {spec.gates * hidden, hidden});
  const Tensor h_0 = args.tensor("h_0", inputs.h_0, l.state_shape(hidden));
  const void* c_0 = args.pointer("c_0", inputs.c_0, l.state_shape(others));
  const void* bias_hh = bias_pointer(args, spec, hidden, inputs.bias_hh);
  const void* gates_x = args.pointer("gates_x", inputs.gates_x, l.shape(spec.gates * hidden));
  const OnDevice device(h_0);

  ForwardResult results = new_results(spec, l, h_0, inputs.save);
  auto& [output, h, c_n, c_sequence, saved] = results;
  h = torch::stable::clone(h_0);  // the state of every step in turn
  if (n == 0) return results;
  const ScalarType wide = carry_type(dtype);
  const Tensor carry_h = new_empty(h_0, {n, hidden}, wide);
  const Tensor carry_c = new_empty(h_0, {n, others}, wide);
  const Tensor kept = new_empty(h_0, {n, size_of_set(spec.kept) * hidden}, wide);
  const Tensor operand = make_if(spec.stages > 1, h_0, {n, hidden});
  std::vector<Tensor> products, weights;
  for (int i = 0; i < spec.stages; ++i) {
    const int64_t first = spec.stage[i].first_gate * hidden, rows = spec.stage[i].gates * hidden;
    products.push_back(new_empty(h_0, {n, rows}));
    weights.push_back(transpose(part(weight_hh, 0, first, rows), 0, 1));
  }

  const auto run = [&](int error) { check_launch(error, op); };
  run(launch_widen(dtype, out(carry_h), in(h_0), n * hidden, device.stream));
  run(launch_widen(dtype, out(carry_c), c_0, n * others, device.stream));
  const size_t size = h_0.element_size();
  for (int64_t s = 0; s < l.steps; ++s) {
    const int64_t t = l.reverse ? l.steps - 1 - s : s, rows = l.rows(t), at = l.offset(t);
    CellForwardArgs a;
    a.rows = rows, a.hidden = hidden;
    a.gates_x = rows_at(gates_x, at, spec.gates * hidden, size);
    a.bias_hh = bias_hh;
    a.carry_h = out(carry_h), a.carry_c = out(carry_c);
    a.lengths = l.lengths, a.step = t, a.reset = flags_at(l, t);
    a.output = rows_at(out(output), at, hidden, size);
    a.c_sequence = rows_at(out(c_sequence), at, others, size);
    a.saved = rows_at(out(saved), at, spec.saved * hidden, size);
    a.h_next = out(h), a.kept = out(kept), a.operand = out(operand);
    for (int i = 0; i < spec.stages; ++i) {
      a.gates_h[i] = in(products[i]);
      product(part(products[i], 0, 0, rows), part(i == 0 ? h : operand, 0, 0, rows), weights[i]);
      run(launch_cell_forward(cell, i, dtype, a, device.stream));
    }
  }
  run(launch_narrow(dtype, out(c_n), in(carry_c), nullptr, nullptr, n, others, device.stream));
  return results;
}

BackwardResult stepwise_backward(Cell cell, const BackwardInputs& inputs) {
  const CellFacts& spec = facts(cell);
  Arguments args({spec.name, "_sequence_backward"}, inputs.h_0);
  const Op& op = args.op;
  const Layout l = layout_of(args, "output", inputs.given.output, inputs.h_0, inputs.rows);
  const Dtype dtype = args.dtype;
  const int64_t n = l.batch, hidden = l.hidden, others = (spec.states - 1) * hidden;
  const int64_t gates = spec.gates * hidden, columns = separate_columns(spec) * hidden;
  check_others(op, spec, "c_0", inputs.c_0);
  const Tensor weight_hh = args.tensor("weight_hh", inputs.weight_hh, {gates, hidden});
  const Tensor h_0 = args.tensor("h_0", inputs.h_0, l.state_shape(hidden));
  const void* c_0 = args.pointer("c_0", inputs.c_0, l.state_shape(others));
  const void* bias_hh = bias_pointer(args, spec, hidden, inputs.bias_hh);
  const GivenPointers given = given_pointers(args, spec, l, inputs.given);
  const OnDevice device(h_0);

  const BackwardResult grads = new_grads(spec, l, h_0);
  const auto& [grad_gates_x, grad_separate, grad_h_0, grad_c_0] = grads;
  if (n == 0) return grads;
  const ScalarType wide = carry_type(dtype);
  const Tensor carry_h = new_empty(h_0, {n, hidden}, wide);
  const Tensor carry_c = new_empty(h_0, {n, others}, wide);
  const Tensor recurrent = new_zeros(h_0, {n, hidden});
  const Tensor grad_operand = make_if(spec.stages > 1, h_0, {n, hidden});
  // What goes back through the products: of cells with separate gates it is not grad_gates_x.
  const bool apart = spec.separate != 0;
  const Tensor grad_gates_h = make_if(apart, h_0, {n, gates});

  const auto run = [&](int error) { check_launch(error, op); };
  run(launch_widen(dtype, out(carry_h), given.grad_h_n, n * hidden, device.stream));
  run(launch_widen(dtype, out(carry_c), given.grad_c_n, n * others, device.stream));
  const size_t size = h_0.element_size();
  std::vector<Tensor> sources, weights;
  for (int i = 0; i < spec.stages; ++i) {
    const int64_t first = spec.stage[i].first_gate * hidden, count = spec.stage[i].gates * hidden;
    const bool flat = apart || l.packed();
    const Tensor& source = apart ? grad_gates_h : grad_gates_x;
    sources.push_back(part(flat ? source : flatten(source, 0, 1), 1, first, count));
    weights.push_back(part(weight_hh, 0, first, count));
  }

  const bool* recurrent_reset = nullptr;
  for (int64_t s = 0; s < l.steps; ++s) {
    const int64_t t = l.reverse ? s : l.steps - 1 - s, rows = l.rows(t), at = l.offset(t);
    const int64_t before = l.reverse ? t + 1 : t - 1;  // the step whose state entered this one
    const bool inside = before >= 0 && before < l.steps;
    const int64_t before_at = inside ? l.offset(before) : 0;
    CellBackwardArgs a;
    a.rows = rows, a.hidden = hidden;
    a.grad_output = rows_at(given.grad_output, at, hidden, size);
    a.grad_c_sequence = rows_at(given.grad_c_sequence, at, others, size);
    a.recurrent = in(recurrent), a.recurrent_reset = recurrent_reset;
    a.bias_hh = bias_hh, a.carry_h = out(carry_h), a.carry_c = out(carry_c);
    a.previous_h = rows_at(given.output, before_at, hidden, size);
    a.previous_c = rows_at(given.c_sequence, before_at, others, size);
    a.first_h = in(h_0), a.first_c = c_0;
    a.previous_rows = inside ? l.rows(before) : 0, a.first_at_end = l.reverse;
    a.new_h = rows_at(given.output, at, hidden, size);
    a.new_c = rows_at(given.c_sequence, at, others, size);
    a.saved = rows_at(given.saved, at, spec.saved * hidden, size);
    a.lengths = l.lengths, a.step = t, a.reset = flags_at(l, t);
    a.grad_gates_x = rows_at(out(grad_gates_x), at, gates, size);
    a.grad_gates_h = out(grad_gates_h);
    a.grad_separate = rows_at(out(grad_separate), at, columns, size);
    a.grad_operand = in(grad_operand);
    for (int i = spec.stages - 1; i >= 0; --i) {
      run(launch_cell_backward(cell, i, dtype, a, device.stream));
      product(part(i == 0 ? recurrent : grad_operand, 0, 0, rows),
              part(sources[i], 0, apart ? 0 : at, rows), weights[i]);
    }
    recurrent_reset = a.reset;
  }
  run(launch_narrow(dtype, out(grad_h_0), in(carry_h), in(recurrent), recurrent_reset, n, hidden,
                    device.stream));
  run(launch_narrow(dtype, out(grad_c_0), in(carry_c), nullptr, nullptr, n, others, device.stream));
  return grads;
}

}  // namespace seqkernels
