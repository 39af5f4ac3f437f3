// The stepwise schedule: one product through torch and one cell kernel per step. It takes every
// shape and dtype, never waits for the device and can be captured in a CUDA graph. Its products
// follow torch's own switch for TF32 in matrix products.
#include "tensors.h"

namespace seqkernels {
namespace {

using torch::stable::narrow;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::transpose;

// Flags of step t, [N], or null.
const bool* flags_at(const Layout& l, int64_t t) {
  return l.reset.has_value() ? l.reset->const_data_ptr<bool>() + t * l.batch : nullptr;
}
const int64_t* lengths_of(const Layout& l) {
  return l.lengths.has_value() ? l.lengths->const_data_ptr<int64_t>() : nullptr;
}

}  // namespace

ForwardResult stepwise_forward(const CellSizes& spec, Tensor gates_x, Tensor weight_hh,
                               Optional bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                               Optional batch_sizes, Optional reset, bool reverse, bool save) {
  const std::string op = std::string(spec.name) + "_sequence";
  const Layout l = layout_of(gates_x, h_0, lengths, batch_sizes, reset, reverse, op);
  const int64_t n = l.batch, hidden = l.hidden;
  check_forward(spec, l, gates_x, weight_hh, bias_hh, h_0, c_0, op);
  const Dtype dtype = dtype_of(h_0, op);
  const OnDevice device(h_0);
  gates_x = dense(gates_x), bias_hh = dense(bias_hh), h_0 = dense(h_0);
  c_0 = dense(c_0);

  const bool two = spec.states == 2, halves = spec.cell == Cell::kGruResetBefore;
  const Tensor output = new_empty(gates_x, l.shape(hidden));
  const Tensor c_sequence = two && save ? new_empty(gates_x, l.shape(hidden)) : absent(gates_x);
  const Tensor saved =
      spec.saved && save ? new_empty(gates_x, l.shape(spec.saved * hidden)) : absent(gates_x);
  const ScalarType wide = carry_type(dtype);
  const Tensor h = torch::stable::clone(h_0), c_n = two ? new_empty(h_0, {n, hidden}) : absent(h_0);
  const Tensor carry_h = new_empty(h_0, {n, hidden}, wide);
  const Tensor carry_c = two ? new_empty(h_0, {n, hidden}, wide) : absent(h_0);
  const Tensor gates_h = new_empty(h_0, {n, spec.gates * hidden});
  const Tensor update = halves ? new_empty(h_0, {n, hidden}, wide) : absent(h_0);
  const Tensor reset_h = halves ? new_empty(h_0, {n, hidden}) : absent(h_0);
  if (n * hidden == 0) return {output, h, c_n, c_sequence, saved};

  const auto run = [&](int error) { check_launch(error, op); };
  run(launch_widen(dtype, out(carry_h), in(h_0), n * hidden, device.stream));
  if (two) run(launch_widen(dtype, out(carry_c), in(c_0), n * hidden, device.stream));
  const Tensor weight_t = transpose(weight_hh, 0, 1);
  const size_t size = h_0.element_size();
  const int64_t first = halves ? 2 * hidden : spec.gates * hidden;  // columns of the first product
  Tensor mutable_weight = weight_t;
  const Tensor weight_first = halves ? narrow(mutable_weight, 1, 0, first) : weight_t;
  const Tensor weight_second = halves ? narrow(mutable_weight, 1, first, hidden) : weight_t;
  const Tensor gates_first = torch::stable::view(
      [&] {
        Tensor flat = torch::stable::flatten(gates_h, 0, 1);
        return narrow(flat, 0, 0, n * first);
      }(),
      {n, first});

  for (int64_t s = 0; s < l.steps; ++s) {
    const int64_t t = reverse ? l.steps - 1 - s : s, rows = l.rows(t), at = l.offset(t);
    CellForwardArgs a;
    a.rows = rows, a.hidden = hidden;
    a.gates_x = rows_at(in(gates_x), at, spec.gates * hidden, size);
    a.gates_h = in(gates_h), a.bias_hh = in(bias_hh);
    a.carry_h = out(carry_h), a.carry_c = out(carry_c);
    a.lengths = lengths_of(l), a.step = t, a.reset = flags_at(l, t);
    a.output = rows_at(out(output), at, hidden, size);
    a.c_sequence = rows_at(out(c_sequence), at, hidden, size);
    a.saved = rows_at(out(saved), at, spec.saved * hidden, size);
    a.h_next = out(h), a.update = out(update), a.reset_h = out(reset_h);
    Tensor h_rows = h, gates_rows = gates_first, reset_rows = reset_h;
    product(narrow(gates_rows, 0, 0, rows), narrow(h_rows, 0, 0, rows), weight_first);
    if (!halves) {
      run(launch_cell_forward(spec.cell, dtype, a, device.stream));
      continue;
    }
    run(launch_reset_forward(dtype, a, device.stream));
    Tensor flat = torch::stable::flatten(gates_h, 0, 1);
    const Tensor second = torch::stable::view(narrow(flat, 0, 0, rows * hidden), {rows, hidden});
    product(second, narrow(reset_rows, 0, 0, rows), weight_second);
    run(launch_update_forward(dtype, a, device.stream));
  }
  if (two) {
    run(launch_narrow(dtype, out(c_n), in(carry_c), nullptr, nullptr, n, hidden, device.stream));
  }
  return {output, h, c_n, c_sequence, saved};
}

BackwardResult stepwise_backward(const CellSizes& spec, Optional grad_output, Optional grad_h_n,
                                 Optional grad_c_n, Optional grad_c_sequence, Tensor weight_hh,
                                 Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                 Tensor saved, Optional lengths, Optional batch_sizes,
                                 Optional reset, bool reverse) {
  const std::string op = std::string(spec.name) + "_sequence_backward";
  const Layout l = layout_of(output, h_0, lengths, batch_sizes, reset, reverse, op);
  const int64_t n = l.batch, hidden = l.hidden, gates = spec.gates * hidden;
  const bool two = spec.states == 2, halves = spec.cell == Cell::kGruResetBefore;
  check_backward(spec, l, grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, h_0, c_0,
                 output, c_sequence, saved, op);
  const Dtype dtype = dtype_of(h_0, op);
  const OnDevice device(h_0);
  grad_output = dense(grad_output), grad_h_n = dense(grad_h_n);
  grad_c_n = dense(grad_c_n), grad_c_sequence = dense(grad_c_sequence);
  h_0 = dense(h_0), c_0 = dense(c_0), output = dense(output);
  c_sequence = dense(c_sequence), saved = dense(saved);
  weight_hh = dense(weight_hh);

  const ScalarType wide = carry_type(dtype);
  const Tensor grad_gates_x = new_empty(output, l.shape(gates));
  const Tensor grad_gates_hn = spec.hidden ? new_empty(output, l.shape(hidden)) : absent(output);
  const Tensor grad_h_0 = new_empty(h_0, {n, hidden});
  const Tensor grad_c_0 = two ? new_empty(h_0, {n, hidden}) : absent(h_0);
  if (n * hidden == 0) return {grad_gates_x, grad_gates_hn, grad_h_0, grad_c_0};
  const Tensor carry_h = new_empty(h_0, {n, hidden}, wide);
  const Tensor carry_c = two ? new_empty(h_0, {n, hidden}, wide) : absent(h_0);
  const Tensor recurrent = new_zeros(h_0, {n, hidden});
  const Tensor grad_reset_h = halves ? new_empty(h_0, {n, hidden}) : absent(h_0);
  // What goes back through the product: gru's differs from grad_gates_x in the n columns.
  const Tensor grad_gates_h = spec.hidden ? new_empty(h_0, {n, gates}) : absent(h_0);

  const auto run = [&](int error) { check_launch(error, op); };
  run(launch_widen(dtype, out(carry_h), in(grad_h_n), n * hidden, device.stream));
  if (two) run(launch_widen(dtype, out(carry_c), in(grad_c_n), n * hidden, device.stream));
  const size_t size = h_0.element_size();
  Tensor weight = weight_hh, flat_gates = grad_gates_x;
  if (!l.packed()) flat_gates = torch::stable::flatten(flat_gates, 0, 1);
  const Tensor weight_first = halves ? narrow(weight, 0, 0, 2 * hidden) : weight_hh;
  const Tensor weight_second = halves ? narrow(weight, 0, 2 * hidden, hidden) : weight_hh;

  const bool* recurrent_reset = nullptr;
  for (int64_t s = 0; s < l.steps; ++s) {
    const int64_t t = reverse ? s : l.steps - 1 - s, rows = l.rows(t), at = l.offset(t);
    const int64_t before = reverse ? t + 1 : t - 1;  // the step whose state entered this one
    const bool inside = before >= 0 && before < l.steps;
    const int64_t before_at = inside ? l.offset(before) : 0;
    CellBackwardArgs a;
    a.rows = rows, a.hidden = hidden;
    a.grad_output = rows_at(in(grad_output), at, hidden, size);
    a.grad_c_sequence = two ? rows_at(in(grad_c_sequence), at, hidden, size) : nullptr;
    a.recurrent = in(recurrent), a.recurrent_reset = recurrent_reset;
    a.carry_h = out(carry_h), a.carry_c = out(carry_c);
    a.previous_h = rows_at(in(output), before_at, hidden, size);
    a.previous_c = two ? rows_at(in(c_sequence), before_at, hidden, size) : nullptr;
    a.first_h = in(h_0), a.first_c = in(c_0);
    a.previous_rows = inside ? l.rows(before) : 0, a.first_at_end = reverse;
    a.new_h = rows_at(in(output), at, hidden, size);
    a.new_c = two ? rows_at(in(c_sequence), at, hidden, size) : nullptr;
    a.saved = spec.saved ? rows_at(in(saved), at, spec.saved * hidden, size) : nullptr;
    a.lengths = lengths_of(l), a.step = t, a.reset = flags_at(l, t);
    a.grad_gates_x = rows_at(out(grad_gates_x), at, gates, size);
    a.grad_gates_h = out(grad_gates_h);
    a.grad_gates_hn = rows_at(out(grad_gates_hn), at, hidden, size);
    Tensor through = spec.hidden ? grad_gates_h : flat_gates, back = recurrent;
    through = narrow(through, 0, spec.hidden ? 0 : at, rows);
    if (!halves) {
      run(launch_cell_backward(spec.cell, dtype, a, device.stream));
      product(narrow(back, 0, 0, rows), through, weight_first);
    } else {
      run(launch_update_backward(dtype, a, device.stream));
      Tensor reset_rows = grad_reset_h;
      product(narrow(reset_rows, 0, 0, rows), narrow(through, 1, 2 * hidden, hidden),
              weight_second);
      a.grad_reset_h = in(grad_reset_h);
      run(launch_reset_backward(dtype, a, device.stream));
      product(narrow(back, 0, 0, rows), narrow(through, 1, 0, 2 * hidden), weight_first);
    }
    recurrent_reset = a.reset;
  }
  run(launch_narrow(dtype, out(grad_h_0), in(carry_h), in(recurrent), recurrent_reset, n, hidden,
                    device.stream));
  if (two) {
    run(launch_narrow(dtype, out(grad_c_0), in(carry_c), nullptr, nullptr, n, hidden,
                      device.stream));
  }
  return {grad_gates_x, grad_gates_hn, grad_h_0, grad_c_0};
}

}  // namespace seqkernels
