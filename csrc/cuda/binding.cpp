// The CUDA implementations of the ops in ops.cpp: registration, and the pointwise cell ops.
// stepwise.cpp holds the sequence ops, persistent.cpp those that keep weights on chip.
#include "cuda/tensors.h"

namespace seqkernels {
namespace {

std::tuple<Tensor, Tensor, Tensor> cell_forward(Cell cell, Tensor gates_x, Tensor gates_h, Tensor h,
                                                Optional c, bool save) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_cell";
  SK_CHECK(h.dim() == 2, "seqkernels::", op, ": expected h of shape [N, H], got ", shape(h));
  const int64_t rows = h.size(0), hidden = h.size(1), others = (spec.states - 1) * hidden;
  check_like(gates_x, h, {rows, spec.gates * hidden}, op, "gates_x");
  check_like(gates_h, h, {rows, spec.gates * hidden}, op, "gates_h");
  check_others(spec, c, h, {rows, others}, op, "c");
  const Dtype dtype = dtype_of(h, op);
  const OnDevice device(h);
  gates_x = dense(gates_x), gates_h = dense(gates_h);
  h = dense(h), c = dense(c);

  const Tensor new_h = torch::stable::new_empty(h, {rows, hidden});
  const Tensor new_c = new_if(spec.states > 1, h, {rows, others});
  const Tensor saved = new_if(save && spec.saved > 0, h, {rows, spec.saved * hidden});
  CellForwardArgs args;
  args.rows = rows, args.hidden = hidden;
  args.gates_x = in(gates_x), args.gates_h[0] = in(gates_h);
  args.h = in(h), args.c = in(c);
  args.output = out(new_h), args.c_sequence = out(new_c), args.saved = out(saved);
  if (h.numel() > 0) check_launch(launch_cell_forward(cell, 0, dtype, args, device.stream), op);
  return {new_h, new_c, saved};
}

BackwardResult cell_backward(Cell cell, Optional grad_new_h, Optional grad_new_c, Tensor h,
                             Optional c, Tensor new_h, Tensor new_c, Tensor saved) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_cell_backward";
  SK_CHECK(h.dim() == 2, "seqkernels::", op, ": expected h of shape [N, H], got ", shape(h));
  const int64_t rows = h.size(0), hidden = h.size(1), others = (spec.states - 1) * hidden;
  const Given given =
      dense(spec, {grad_new_h, std::nullopt, std::nullopt, grad_new_c, new_h, new_c, saved});
  check_like(given.grad_output, h, {rows, hidden}, op, "grad_new_h");
  check_like(given.grad_c_sequence, h, {rows, others}, op, "grad_new_c");
  check_others(spec, c, h, {rows, others}, op, "c");
  check_like(given.output, h, {rows, hidden}, op, "new_h");
  if (spec.states > 1) check_like(given.c_sequence, h, {rows, others}, op, "new_c");
  if (spec.saved > 0) check_like(given.saved, h, {rows, spec.saved * hidden}, op, "saved");
  const Dtype dtype = dtype_of(h, op);
  const OnDevice device(h);
  h = dense(h), c = dense(c);

  const Tensor gates = torch::stable::new_empty(h, {rows, spec.gates * hidden});
  const Tensor gates_h = new_if(spec.separate != 0, h, {rows, spec.gates * hidden});
  const Tensor grad_h = torch::stable::new_empty(h, {rows, hidden});
  const Tensor grad_c = new_if(spec.states > 1, h, {rows, others});
  CellBackwardArgs args;
  args.rows = rows, args.hidden = hidden;
  args.grad_output = in(given.grad_output), args.grad_c_sequence = in(given.grad_c_sequence);
  args.previous_h = in(h), args.previous_c = in(c), args.previous_rows = rows;
  args.new_h = in(given.output), args.new_c = in(given.c_sequence), args.saved = in(given.saved);
  args.grad_gates_x = out(gates), args.grad_gates_h = out(gates_h);
  args.grad_h = out(grad_h), args.grad_c = out(grad_c);
  if (h.numel() > 0) check_launch(launch_cell_backward(cell, 0, dtype, args, device.stream), op);
  return {gates, gates_h, grad_h, grad_c};
}

// One function of the op's own signature per cell, as the dispatcher wants them.
template <Cell kCell>
struct Ops {
  static std::tuple<Tensor, Tensor, Tensor> cell(Tensor gates_x, Tensor gates_h, Tensor h,
                                                 Optional c, bool save) {
    return cell_forward(kCell, gates_x, gates_h, h, c, save);
  }
  static BackwardResult cell_grad(Optional grad_new_h, Optional grad_new_c, Tensor h, Optional c,
                                  Tensor new_h, Tensor new_c, Tensor saved) {
    return cell_backward(kCell, grad_new_h, grad_new_c, h, c, new_h, new_c, saved);
  }
  template <auto kFunction>
  static ForwardResult forward(Tensor gates_x, Tensor weight_hh, Optional bias_hh, Tensor h_0,
                               Optional c_0, Optional lengths, Optional batch_sizes, Optional reset,
                               bool reverse, bool save) {
    return kFunction(kCell, gates_x, weight_hh, bias_hh, h_0, c_0,
                     {lengths, batch_sizes, reset, reverse}, save);
  }
  template <auto kFunction>
  static BackwardResult backward(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                 Optional grad_c_sequence, Tensor weight_hh, Optional bias_hh,
                                 Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                 Tensor saved, Optional lengths, Optional batch_sizes,
                                 Optional reset, bool reverse) {
    return kFunction(kCell,
                     {grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved},
                     weight_hh, bias_hh, h_0, c_0, {lengths, batch_sizes, reset, reverse});
  }
  static ForwardResult directions(Tensor gates_x, Tensors weight_hh, Tensors bias_hh, Tensor h_0,
                                  Optional c_0, Optional lengths, Optional batch_sizes,
                                  Optional reset, bool save) {
    return directions_forward(kCell, gates_x, weight_hh, bias_hh, h_0, c_0,
                              {lengths, batch_sizes, reset}, save);
  }
  static BackwardResult directions_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                        Optional grad_c_sequence, Tensors weight_hh,
                                        Tensors bias_hh, Tensor h_0, Optional c_0, Tensor output,
                                        Tensor c_sequence, Tensor saved, Optional lengths,
                                        Optional batch_sizes, Optional reset) {
    return directions_backward(
        kCell, {grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved},
        weight_hh, bias_hh, h_0, c_0, {lengths, batch_sizes, reset});
  }
  static ForwardResult layers(Tensor gates_x, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih,
                              Tensors bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                              Optional batch_sizes, Optional reset, bool save) {
    return layers_forward(kCell, gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0,
                          {lengths, batch_sizes, reset}, save);
  }
  static BackwardResult layers_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                    Optional grad_c_sequence, Tensors weight_ih, Tensors weight_hh,
                                    Tensors bias_hh, Tensor h_0, Optional c_0, Tensor output,
                                    Tensor c_sequence, Tensor saved, Optional lengths,
                                    Optional batch_sizes, Optional reset) {
    return layers_backward(
        kCell, {grad_output, grad_h_n, grad_c_n, grad_c_sequence, output, c_sequence, saved},
        weight_ih, weight_hh, bias_hh, h_0, c_0, {lengths, batch_sizes, reset});
  }
};

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  using namespace seqkernels;
#define SK_IMPL(Type, name)                                                                \
  {                                                                                        \
    using Own = Ops<kCellOf<Type>>;                                                        \
    m.impl(#name "_sequence", TORCH_BOX((&Own::forward<&stepwise_forward>)));              \
    m.impl(#name "_sequence_backward", TORCH_BOX((&Own::backward<&stepwise_backward>)));   \
    m.impl(#name "_sequence_persistent", TORCH_BOX((&Own::forward<&persistent_forward>))); \
    m.impl(#name "_sequence_persistent_backward",                                          \
           TORCH_BOX((&Own::backward<&persistent_backward>)));                             \
    m.impl(#name "_directions_persistent", TORCH_BOX(&Own::directions));                   \
    m.impl(#name "_directions_persistent_backward", TORCH_BOX(&Own::directions_grad));     \
    m.impl(#name "_layers_persistent", TORCH_BOX(&Own::layers));                           \
    m.impl(#name "_layers_persistent_backward", TORCH_BOX(&Own::layers_grad));             \
    if constexpr (kPointwise<Type>) {                                                      \
      m.impl(#name "_cell", TORCH_BOX(&Own::cell));                                        \
      m.impl(#name "_cell_backward", TORCH_BOX(&Own::cell_grad));                          \
    }                                                                                      \
  }
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
}
