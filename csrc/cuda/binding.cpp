// The CUDA implementations of the ops in ops.cpp: registration, and the pointwise cell ops.
// stepwise.cpp holds the sequence ops, persistent.cpp those that keep weights on chip.
#include "tensors.h"

namespace seqkernels {
namespace {

std::tuple<Tensor, Tensor, Tensor> cell_forward(const CellSizes& spec, Tensor gates_x,
                                                Tensor gates_h, Tensor h, Optional c, bool save) {
  const std::string op = std::string(spec.name) + "_cell";
  SK_CHECK(h.dim() == 2, "seqkernels::", op, ": expected h of shape [N, H], got ", shape(h));
  const int64_t rows = h.size(0), hidden = h.size(1);
  check_like(gates_x, h, {rows, spec.gates * hidden}, op, "gates_x");
  check_like(gates_h, h, {rows, spec.gates * hidden}, op, "gates_h");
  SK_CHECK(c.has_value() == (spec.states == 2), "seqkernels::", op,
           spec.states == 2 ? ": c is missing" : ": this cell has no c");
  check_like(c, h, {rows, hidden}, op, "c");
  const Dtype dtype = dtype_of(h, op);
  const OnDevice device(h);
  gates_x = dense(gates_x), gates_h = dense(gates_h);
  h = dense(h), c = dense(c);

  const Tensor new_h = torch::stable::new_empty(h, {rows, hidden});
  const Tensor new_c = spec.states == 2 ? torch::stable::new_empty(h, {rows, hidden}) : absent(h);
  const Tensor saved =
      save && spec.saved ? torch::stable::new_empty(h, {rows, spec.saved * hidden}) : absent(h);
  CellForwardArgs args;
  args.rows = rows, args.hidden = hidden;
  args.gates_x = in(gates_x), args.gates_h = in(gates_h);
  args.h = in(h), args.c = in(c);
  args.output = out(new_h), args.c_sequence = out(new_c), args.saved = out(saved);
  if (h.numel() > 0) check_launch(launch_cell_forward(spec.cell, dtype, args, device.stream), op);
  return {new_h, new_c, saved};
}

BackwardResult cell_backward(const CellSizes& spec, Optional grad_new_h, Optional grad_new_c,
                             Tensor h, Optional c, Tensor new_h, Tensor new_c, Tensor saved) {
  const std::string op = std::string(spec.name) + "_cell_backward";
  SK_CHECK(h.dim() == 2, "seqkernels::", op, ": expected h of shape [N, H], got ", shape(h));
  const int64_t rows = h.size(0), hidden = h.size(1);
  const bool two = spec.states == 2;
  check_like(grad_new_h, h, {rows, hidden}, op, "grad_new_h");
  if (two) check_like(grad_new_c, h, {rows, hidden}, op, "grad_new_c");
  SK_CHECK(c.has_value() == two, "seqkernels::", op,
           two ? ": c is missing" : ": this cell has no c");
  check_like(c, h, {rows, hidden}, op, "c");
  check_like(new_h, h, {rows, hidden}, op, "new_h");
  if (two) check_like(new_c, h, {rows, hidden}, op, "new_c");
  if (spec.saved) check_like(saved, h, {rows, spec.saved * hidden}, op, "saved");
  const Dtype dtype = dtype_of(h, op);
  const OnDevice device(h);
  grad_new_h = dense(grad_new_h), grad_new_c = dense(grad_new_c);
  h = dense(h), c = dense(c);
  new_h = dense(new_h), new_c = dense(new_c), saved = dense(saved);

  const Tensor gates = torch::stable::new_empty(h, {rows, spec.gates * hidden});
  const Tensor gates_h =
      spec.hidden ? torch::stable::new_empty(h, {rows, spec.gates * hidden}) : absent(h);
  const Tensor grad_h = torch::stable::new_empty(h, {rows, hidden});
  const Tensor grad_c = two ? torch::stable::new_empty(h, {rows, hidden}) : absent(h);
  CellBackwardArgs args;
  args.rows = rows, args.hidden = hidden;
  args.grad_output = in(grad_new_h);
  args.grad_c_sequence = two ? in(grad_new_c) : nullptr;
  args.previous_h = in(h), args.previous_c = in(c), args.previous_rows = rows;
  args.new_h = in(new_h), args.new_c = two ? in(new_c) : nullptr, args.saved = in(saved);
  args.grad_gates_x = out(gates), args.grad_gates_h = out(gates_h);
  args.grad_h = out(grad_h), args.grad_c = out(grad_c);
  if (h.numel() > 0) check_launch(launch_cell_backward(spec.cell, dtype, args, device.stream), op);
  return {gates, gates_h, grad_h, grad_c};
}

// One function of the op's own signature per cell, as the dispatcher wants them.
template <typename C, Cell kCell>
struct Ops {
  static constexpr const char* name() {
    switch (kCell) {
#define SK_NAME(Type, text) \
  case Cell::k##Type:       \
    return #text;
      SK_FOR_EACH_CELL(SK_NAME)
#undef SK_NAME
    }
    return "";
  }
  static constexpr CellSizes spec() { return sizes_of<C>(kCell, name()); }

  static std::tuple<Tensor, Tensor, Tensor> cell(Tensor gates_x, Tensor gates_h, Tensor h,
                                                 Optional c, bool save) {
    return cell_forward(spec(), gates_x, gates_h, h, c, save);
  }
  static BackwardResult cell_grad(Optional grad_new_h, Optional grad_new_c, Tensor h, Optional c,
                                  Tensor new_h, Tensor new_c, Tensor saved) {
    return cell_backward(spec(), grad_new_h, grad_new_c, h, c, new_h, new_c, saved);
  }
  template <auto kFunction>
  static ForwardResult forward(Tensor gates_x, Tensor weight_hh, Optional bias_hh, Tensor h_0,
                               Optional c_0, Optional lengths, Optional batch_sizes, Optional reset,
                               bool reverse, bool save) {
    return kFunction(spec(), gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
                     reverse, save);
  }
  template <auto kFunction>
  static BackwardResult backward(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                 Optional grad_c_sequence, Tensor weight_hh, Tensor h_0,
                                 Optional c_0, Tensor output, Tensor c_sequence, Tensor saved,
                                 Optional lengths, Optional batch_sizes, Optional reset,
                                 bool reverse) {
    return kFunction(spec(), grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, h_0, c_0,
                     output, c_sequence, saved, lengths, batch_sizes, reset, reverse);
  }
  static ForwardResult directions(Tensor gates_x, Tensors weight_hh, Tensors bias_hh, Tensor h_0,
                                  Optional c_0, Optional lengths, Optional batch_sizes,
                                  Optional reset, bool save) {
    return directions_forward(spec(), gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes,
                              reset, save);
  }
  static BackwardResult directions_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                        Optional grad_c_sequence, Tensors weight_hh, Tensor h_0,
                                        Optional c_0, Tensor output, Tensor c_sequence,
                                        Tensor saved, Optional lengths, Optional batch_sizes,
                                        Optional reset) {
    return directions_backward(spec(), grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh,
                               h_0, c_0, output, c_sequence, saved, lengths, batch_sizes, reset);
  }
  static ForwardResult layers(Tensor gates_x, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih,
                              Tensors bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                              Optional batch_sizes, Optional reset, bool save) {
    return layers_forward(spec(), gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0,
                          lengths, batch_sizes, reset, save);
  }
  static BackwardResult layers_grad(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                    Optional grad_c_sequence, Tensors weight_ih, Tensors weight_hh,
                                    Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                    Tensor saved, Optional lengths, Optional batch_sizes,
                                    Optional reset) {
    return layers_backward(spec(), grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_ih,
                           weight_hh, h_0, c_0, output, c_sequence, saved, lengths, batch_sizes,
                           reset);
  }
};

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CUDA, m) {
  using namespace seqkernels;
#define SK_IMPL(Type, name)                                                                      \
  m.impl(#name "_sequence", TORCH_BOX((&Ops<Type, Cell::k##Type>::forward<&stepwise_forward>))); \
  m.impl(#name "_sequence_backward",                                                             \
         TORCH_BOX((&Ops<Type, Cell::k##Type>::backward<&stepwise_backward>)));                  \
  m.impl(#name "_sequence_persistent",                                                           \
         TORCH_BOX((&Ops<Type, Cell::k##Type>::forward<&persistent_forward>)));                  \
  m.impl(#name "_sequence_persistent_backward",                                                  \
         TORCH_BOX((&Ops<Type, Cell::k##Type>::backward<&persistent_backward>)));                \
  m.impl(#name "_directions_persistent", TORCH_BOX((&Ops<Type, Cell::k##Type>::directions)));    \
  m.impl(#name "_directions_persistent_backward",                                                \
         TORCH_BOX((&Ops<Type, Cell::k##Type>::directions_grad)));                               \
  m.impl(#name "_layers_persistent", TORCH_BOX((&Ops<Type, Cell::k##Type>::layers)));            \
  m.impl(#name "_layers_persistent_backward", TORCH_BOX((&Ops<Type, Cell::k##Type>::layers_grad)));
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
#define SK_IMPL(Type, name)                                            \
  m.impl(#name "_cell", TORCH_BOX((&Ops<Type, Cell::k##Type>::cell))); \
  m.impl(#name "_cell_backward", TORCH_BOX((&Ops<Type, Cell::k##Type>::cell_grad)));
  SK_IMPL(Lstm, lstm)
  SK_IMPL(Gru, gru)
  SK_IMPL(RnnTanh, rnn_tanh)
  SK_IMPL(RnnRelu, rnn_relu)
#undef SK_IMPL
}
