// The CUDA implementations of the ops in ops.cpp: registration, and the pointwise cell ops.
// stepwise.cpp holds the sequence ops, persistent.cpp those that keep weights on chip.
#include "cuda/tensors.h"

namespace seqkernels {
namespace {

CellResult one_cell(Cell cell, const CellInputs& inputs) {
  const CellFacts& spec = facts(cell);
  const Tensor& h = inputs.h;
  Arguments a({spec.name, "_cell"}, h);
  const StateSize s(a.op, h);
  check_others(a.op, spec, "c", inputs.c);
  CellForwardArgs args;
  args.rows = s.rows, args.hidden = s.hidden;
  args.gates_x = a.pointer("gates_x", inputs.gates_x, {s.rows, spec.gates * s.hidden});
  args.gates_h[0] = a.pointer("gates_h", inputs.gates_h, {s.rows, spec.gates * s.hidden});
  args.h = a.pointer("h", h, {s.rows, s.hidden});
  args.c = a.pointer("c", inputs.c, {s.rows, (spec.states - 1) * s.hidden});
  const OnDevice device(h);
  const CellResult results = new_state(spec, s, h, inputs.save);
  const auto& [new_h, new_c, saved] = results;
  args.output = out(new_h), args.c_sequence = out(new_c), args.saved = out(saved);
  if (h.numel() > 0) check_launch(launch_cell_forward(cell, 0, a.dtype, args, device.stream), a.op);
  return results;
}

BackwardResult cell_backward(Cell cell, const CellGiven& inputs) {
  const CellFacts& spec = facts(cell);
  const Tensor& h = inputs.h;
  Arguments a({spec.name, "_cell_backward"}, h);
  const StateSize s(a.op, h);
  const CellPointers given = cell_pointers(a, spec, s, inputs);
  const OnDevice device(h);
  const BackwardResult grads = new_cell_grads(spec, s, h);
  const auto& [grad_gates_x, grad_gates_h, grad_h, grad_c] = grads;
  CellBackwardArgs args;
  args.rows = args.previous_rows = s.rows, args.hidden = s.hidden;
  args.grad_output = given.grad_new_h, args.grad_c_sequence = given.grad_new_c;
  args.previous_h = given.h, args.previous_c = given.c;
  args.new_h = given.new_h, args.new_c = given.new_c, args.saved = given.saved;
  args.grad_gates_x = out(grad_gates_x), args.grad_gates_h = out(grad_gates_h);
  args.grad_h = out(grad_h), args.grad_c = out(grad_c);
  if (h.numel() > 0)
    check_launch(launch_cell_backward(cell, 0, a.dtype, args, device.stream), a.op);
  return grads;
}

// Of several recurrences in one launch; the rest of a cell's ops is OpsOf.
template <Cell kCell>
struct JointOps {
  static ForwardResult directions(Tensor gates_x, Tensors weight_hh, Tensors bias_hh, Tensor h_0,
                                  Optional c_0, Optional lengths, Optional batch_sizes,
                                  Optional reset, bool save) {
    return joint_forward(kCell, false, {{}, weight_hh, {}, bias_hh}, gates_x, h_0, c_0,
                         {lengths, batch_sizes, reset}, save);
  }
  static BackwardResult directions_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                        Optional grad_c_sequence, Tensors weight_hh,
                                        Tensors bias_hh, Tensor h_0, Optional c_0, Tensor output,
                                        Tensor c_sequence, Tensor saved, Optional lengths,
                                        Optional batch_sizes, Optional reset) {
    return joint_backward(
        kCell, false, {{}, weight_hh, {}, bias_hh},
        {grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved}, h_0, c_0,
        {lengths, batch_sizes, reset});
  }
  static ForwardResult layers(Tensor gates_x, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih,
                              Tensors bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                              Optional batch_sizes, Optional reset, bool save) {
    return joint_forward(kCell, true, {weight_ih, weight_hh, bias_ih, bias_hh}, gates_x, h_0, c_0,
                         {lengths, batch_sizes, reset}, save);
  }
  static BackwardResult layers_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                    Optional grad_c_sequence, Tensors weight_ih, Tensors weight_hh,
                                    Tensors bias_hh, Tensor h_0, Optional c_0, Tensor output,
                                    Tensor c_sequence, Tensor saved, Optional lengths,
                                    Optional batch_sizes, Optional reset) {
    return joint_backward(
        kCell, true, {weight_ih, weight_hh, {}, bias_hh},
        {grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved}, h_0, c_0,
        {lengths, batch_sizes, reset});
  }
};

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  using namespace seqkernels;
#define SK_IMPL(Type, name)                                                                \
  {                                                                                        \
    using Own = OpsOf<kCellOf<Type>>;                                                      \
    using Joint = JointOps<kCellOf<Type>>;                                                 \
    m.impl(#name "_sequence", TORCH_BOX((&Own::forward<&stepwise_forward>)));              \
    m.impl(#name "_sequence_backward", TORCH_BOX((&Own::backward<&stepwise_backward>)));   \
    m.impl(#name "_sequence_persistent", TORCH_BOX((&Own::forward<&persistent_forward>))); \
    m.impl(#name "_sequence_persistent_backward",                                          \
           TORCH_BOX((&Own::backward<&persistent_backward>)));                             \
    m.impl(#name "_directions_persistent", TORCH_BOX(&Joint::directions));                 \
    m.impl(#name "_directions_persistent_backward", TORCH_BOX(&Joint::directions_grad));   \
    m.impl(#name "_layers_persistent", TORCH_BOX(&Joint::layers));                         \
    m.impl(#name "_layers_persistent_backward", TORCH_BOX(&Joint::layers_grad));           \
    if constexpr (kPointwise<Type>) {                                                      \
      m.impl(#name "_cell", TORCH_BOX((&Own::cell<&one_cell>)));                           \
      m.impl(#name "_cell_backward", TORCH_BOX((&Own::cell_backward<&cell_backward>)));    \
    }                                                                                      \
  }
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
}
