// The persistent schedule: plans a call and launches one kernel for the whole sequence.
#include "tensors.h"

namespace seqkernels {
namespace {

using torch::stable::new_empty;

Math math_of(Dtype dtype, const std::string& op) {
  switch (dtype) {
    case Dtype::kFloat16:
      return Math::kHalf;
    case Dtype::kBFloat16:
      return Math::kBFloat16;
    case Dtype::kFloat32:
      return tf32_allowed() ? Math::kTf32 : Math::kFloat32;
    case Dtype::kFloat64:
      break;
  }
  STD_TORCH_CHECK(false, "seqkernels::", op, ": there is no persistent kernel for float64");
}

// What forward and backward have in common: the plan, the layout on the device, and memory for the
// exchange. Lives until the launch is enqueued; torch's allocator keeps freed memory
// stream-ordered.
class Launch {
 public:
  Launch(const CellSizes& spec, bool backward, const Layout& l, const Tensor& h_0,
         const OnDevice& device, const std::string& op)
      : op_(op), cell_(spec.cell), backward_(backward), math_(math_of(dtype_of(h_0, op), op)) {
    STD_TORCH_CHECK(l.steps < (int64_t(1) << 30), "seqkernels::", op, ": the sequence of ", l.steps,
                    " steps is too long");
    PlanRequest request;
    request.cell = spec.cell, request.math = math_, request.backward = backward;
    request.batch = l.batch, request.hidden = l.hidden;
    request.processors = device.facts.processors;
    request.shared_per_block = device.facts.shared_per_block;
    request.max_cluster = device.facts.max_cluster;
    request.max_units = device.facts.max_units;
    const Planned planned = make_plan(request);
    STD_TORCH_CHECK(planned.refusal.empty(), "seqkernels::", op, ": ", planned.refusal);
    args.plan = planned.plan;
    args.steps = static_cast<int32_t>(l.steps);
    args.reverse = l.reverse;
    if (l.reset.has_value()) args.reset = l.reset->const_data_ptr<bool>();
    if (l.lengths.has_value()) {
      args.lengths = l.lengths->const_data_ptr<int64_t>();
      // A slice runs as long as its longest row: rows of like length share one. Packed rows lie so.
      if (args.plan.slices > 1) {
        order_ = longest_first(*l.lengths);
        args.order = order_->const_data_ptr<int64_t>();
      }
    }
    if (l.packed()) {
      std::vector<int64_t> numbers(l.offsets.begin(), l.offsets.begin() + l.steps);
      for (int64_t n = 0, t = l.steps; n < l.batch; ++n) {
        while (t > 0 && l.sizes[t - 1] <= n) --t;
        numbers.push_back(t);
      }
      const int64_t count = static_cast<int64_t>(numbers.size());
      layout_ = new_empty(h_0, {count}, ScalarType::Long);
      int64_t* to = layout_->mutable_data_ptr<int64_t>();
      check_launch(launch_numbers(to, numbers.data(), count, device.stream), op);
      args.offsets = to;
      args.lengths = to + l.steps;
    }
    if (args.plan.exchange_bytes > 0) {
      exchange_ = new_empty(h_0, {args.plan.exchange_bytes}, ScalarType::Byte);
      args.exchange = exchange_->mutable_data_ptr();
      check_launch(zero_async(args.exchange, args.plan.exchange_bytes, device.stream), op);
    }
  }
  void run(const OnDevice& device) {
    check_launch(launch_persistent(cell_, math_, backward_, args, device.stream), op_);
  }

  SequenceArgs args;

 private:
  std::string op_;
  Cell cell_;
  bool backward_;
  Math math_;
  Optional layout_, order_, exchange_;
};

}  // namespace

int launch_persistent(Cell cell, Math math, bool backward, const SequenceArgs& args, void* stream) {
  switch (math) {
    case Math::kHalf:
      return launch_persistent_half(cell, backward, args, stream);
    case Math::kBFloat16:
      return launch_persistent_bfloat16(cell, backward, args, stream);
    case Math::kTf32:
      return launch_persistent_tf32(cell, backward, args, stream);
    case Math::kFloat32:
      return launch_persistent_float32(cell, backward, args, stream);
  }
  return 1;  // cudaErrorInvalidValue
}

ForwardResult persistent_forward(const CellSizes& spec, Tensor gates_x, Tensor weight_hh,
                                 Optional bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                                 Optional batch_sizes, Optional reset, bool reverse, bool save) {
  const std::string op = std::string(spec.name) + "_sequence_persistent";
  const Layout l = layout_of(gates_x, h_0, lengths, batch_sizes, reset, reverse, op);
  check_forward(spec, l, gates_x, weight_hh, bias_hh, h_0, c_0, op);
  const OnDevice device(h_0);
  gates_x = dense(gates_x), weight_hh = dense(weight_hh), bias_hh = dense(bias_hh);
  h_0 = dense(h_0), c_0 = dense(c_0);

  const bool two = spec.states == 2;
  const int64_t n = l.batch, hidden = l.hidden;
  const Tensor output = new_empty(gates_x, l.shape(hidden));
  const Tensor c_sequence = two && save ? new_empty(gates_x, l.shape(hidden)) : absent(gates_x);
  const Tensor saved =
      spec.saved && save ? new_empty(gates_x, l.shape(spec.saved * hidden)) : absent(gates_x);
  const Tensor h_n = new_empty(h_0, {n, hidden}),
               c_n = two ? new_empty(h_0, {n, hidden}) : absent(h_0);
  if (n * hidden == 0) return {output, h_n, c_n, c_sequence, saved};
  Launch launch(spec, false, l, h_0, device, op);
  SequenceArgs& a = launch.args;
  a.gates_x = in(gates_x), a.weight_hh = in(weight_hh), a.bias_hh = in(bias_hh);
  a.h_0 = in(h_0), a.c_0 = in(c_0), a.h_n = out(h_n), a.c_n = out(c_n);
  a.output = out(output), a.c_sequence = out(c_sequence), a.saved = out(saved);
  launch.run(device);
  return {output, h_n, c_n, c_sequence, saved};
}

BackwardResult persistent_backward(const CellSizes& spec, Optional grad_output, Optional grad_h_n,
                                   Optional grad_c_n, Optional grad_c_sequence, Tensor weight_hh,
                                   Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                   Tensor saved, Optional lengths, Optional batch_sizes,
                                   Optional reset, bool reverse) {
  const std::string op = std::string(spec.name) + "_sequence_persistent_backward";
  const Layout l = layout_of(output, h_0, lengths, batch_sizes, reset, reverse, op);
  check_backward(spec, l, grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, h_0, c_0,
                 output, c_sequence, saved, op);
  const OnDevice device(h_0);
  grad_output = dense(grad_output), grad_h_n = dense(grad_h_n), grad_c_n = dense(grad_c_n);
  grad_c_sequence = dense(grad_c_sequence), weight_hh = dense(weight_hh), h_0 = dense(h_0);
  c_0 = dense(c_0), output = dense(output), c_sequence = dense(c_sequence), saved = dense(saved);

  const bool two = spec.states == 2;
  const int64_t n = l.batch, hidden = l.hidden;
  const Tensor grad_gates_x = new_empty(output, l.shape(spec.gates * hidden));
  const Tensor grad_gates_hn = spec.hidden ? new_empty(output, l.shape(hidden)) : absent(output);
  const Tensor grad_h_0 = new_empty(h_0, {n, hidden});
  const Tensor grad_c_0 = two ? new_empty(h_0, {n, hidden}) : absent(h_0);
  if (n * hidden == 0) return {grad_gates_x, grad_gates_hn, grad_h_0, grad_c_0};
  Launch launch(spec, true, l, h_0, device, op);
  SequenceArgs& a = launch.args;
  a.weight_hh = in(weight_hh), a.h_0 = in(h_0), a.c_0 = in(c_0);
  // The kernel takes one set of pointers in both directions; the backward only reads these.
  a.output = const_cast<void*>(in(output));
  a.c_sequence = two ? const_cast<void*>(in(c_sequence)) : nullptr;
  a.saved = spec.saved ? const_cast<void*>(in(saved)) : nullptr;
  a.grad_output = in(grad_output), a.grad_h_n = in(grad_h_n);
  a.grad_c_n = two ? in(grad_c_n) : nullptr;
  a.grad_c_sequence = two ? in(grad_c_sequence) : nullptr;
  a.grad_gates_x = out(grad_gates_x), a.grad_gates_hn = out(grad_gates_hn);
  a.grad_h_0 = out(grad_h_0), a.grad_c_0 = out(grad_c_0);
  launch.run(device);
  return {grad_gates_x, grad_gates_hn, grad_h_0, grad_c_0};
}

}  // namespace seqkernels
