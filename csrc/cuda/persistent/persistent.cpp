// The persistent schedule: plans a call and launches one kernel for the whole sequence.
#include "cuda/plan/plan_cache.h"
#include "cuda/tensors.h"

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
  SK_CHECK(false, "seqkernels::", op, ": there is no persistent kernel for float64");
}

// What forward and backward have in common: the plan, the layout on the device, and memory for the
// exchange. Lives until the launch is enqueued; torch's allocator keeps freed memory
// stream-ordered.
class Launch {
 public:
  Launch(Cell cell, bool backward, const Layout& l, const Tensor& h_0, const OnDevice& device,
         const std::string& op)
      : op_(op) {
    SK_CHECK(l.steps < (int64_t(1) << 30), "seqkernels::", op, ": the sequence of ", l.steps,
             " steps is too long");
    request_ = request_for(device.facts);
    request_.cell = cell, request_.math = math_of(dtype_of(h_0, op), op);
    request_.backward = backward;
    request_.batch = l.batch, request_.hidden = l.hidden;
    request_.parts = static_cast<int>(std::max<int64_t>(1, l.parts)), request_.stacked = l.stacked;
    const KnownPlan known = known_plan(request_, device.index);
    SK_CHECK(known.planned.refusal.empty(), "seqkernels::", op, ": ", known.planned.refusal);
    args.plan = known.planned.plan;
    args.not_cooperative = known.not_cooperative;
    args.steps = static_cast<int32_t>(l.steps);
    // Of two directions the second is the reverse one.
    args.reverse = l.parts > 0 ? (l.stacked ? 0 : 2) : l.reverse;
    if (l.stacked) {
      args.part_stride = l.packed() ? l.offsets[l.steps] : l.steps * l.batch;
    } else if (l.parts > 0) {
      args.row_stride = l.parts, args.part_stride = 1;
    }
    if (l.reset.has_value()) args.reset = l.reset->const_data_ptr<bool>();
    if (l.parts > 0 && !l.stacked) args.reset_stride = l.steps * l.batch;
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
    const PlanRequest& r = request_;
    const int error = launch_persistent(r.cell, r.math, r.backward, args, device.stream);
    SK_CHECK(!refuses_launch(error), "seqkernels::", op_, ": ",
             refuse_plan(r, device.index, error));
    check_launch(error, op_);
  }

  SequenceArgs args;

 private:
  std::string op_;
  PlanRequest request_;
  Optional layout_, order_, exchange_;
};

// One set of weights for each part; bias_hh and bias_ih may be empty.
struct Weights {
  Tensors weight_hh, bias_hh, weight_ih, bias_ih;
};

void set_weights(const Weights& weights, SequenceArgs* a) {
  for (size_t i = 0; i < weights.weight_hh.size(); ++i) a->weight_hh[i] = in(weights.weight_hh[i]);
  for (size_t i = 0; i < weights.bias_hh.size(); ++i) a->bias_hh[i] = in(weights.bias_hh[i]);
  for (size_t i = 0; i < weights.weight_ih.size(); ++i) {
    a->weight_ih[i + 1] = in(weights.weight_ih[i]);
  }
  for (size_t i = 0; i < weights.bias_ih.size(); ++i) a->bias_ih[i + 1] = in(weights.bias_ih[i]);
}

ForwardResult forward(Cell cell, const std::string& op, const Layout& l, Tensor gates_x,
                      const Weights& weights, Tensor h_0, Optional c_0, bool save) {
  const OnDevice device(h_0);
  gates_x = dense(gates_x), h_0 = dense(h_0), c_0 = dense(c_0);
  const ForwardResult results = new_results(facts(cell), l, h_0, save);
  const auto& [output, h_n, c_n, c_sequence, saved] = results;
  if (l.batch * l.hidden == 0) return results;
  Launch launch(cell, false, l, h_0, device, op);
  SequenceArgs& a = launch.args;
  set_weights(weights, &a);
  a.gates_x = in(gates_x), a.h_0 = in(h_0), a.c_0 = in(c_0);
  a.h_n = out(h_n), a.c_n = out(c_n);
  a.output = out(output), a.c_sequence = out(c_sequence), a.saved = out(saved);
  launch.run(device);
  return results;
}

BackwardResult backward(Cell cell, const std::string& op, const Layout& l, const Given& given,
                        const Weights& weights, Tensor h_0, Optional c_0) {
  const OnDevice device(h_0);
  const Given g = dense(facts(cell), given);
  h_0 = dense(h_0), c_0 = dense(c_0);
  const BackwardResult grads = new_grads(facts(cell), l, h_0);
  const auto& [grad_gates_x, grad_separate, grad_h_0, grad_c_0] = grads;
  if (l.batch * l.hidden == 0) return grads;
  Launch launch(cell, true, l, h_0, device, op);
  SequenceArgs& a = launch.args;
  set_weights(weights, &a);
  a.h_0 = in(h_0), a.c_0 = in(c_0);
  // The kernel takes one set of pointers forward and backward; the backward only reads these.
  a.output = const_cast<void*>(in(g.output)), a.c_sequence = const_cast<void*>(in(g.c_sequence));
  a.saved = const_cast<void*>(in(g.saved));
  a.grad_output = in(g.grad_output), a.grad_c_sequence = in(g.grad_c_sequence);
  a.grad_h_n = in(g.grad_h_n), a.grad_c_n = in(g.grad_c_n);
  a.grad_gates_x = out(grad_gates_x), a.grad_separate = out(grad_separate);
  a.grad_h_0 = out(grad_h_0), a.grad_c_0 = out(grad_c_0);
  launch.run(device);
  return grads;
}

// Checks of the weights of several parts, beside those of the first. The backward needs only some.
void check_parts(const CellFacts& spec, const Layout& l, const Weights& w, const Tensor& h_0,
                 const std::string& op) {
  const int64_t rows = spec.gates * l.hidden, above = l.stacked ? l.parts - 1 : 0;
  const auto check_list = [&](const Tensors& list, int64_t count, const char* name) {
    SK_CHECK(static_cast<int64_t>(list.size()) == count, "seqkernels::", op, ": expected ", count,
             " tensors ", name, ", got ", list.size());
  };
  check_list(w.weight_hh, l.parts, "weight_hh");
  check_list(w.weight_ih, above, "weight_ih");
  if (!w.bias_hh.empty()) check_list(w.bias_hh, l.parts, "bias_hh");
  if (!w.bias_ih.empty()) check_list(w.bias_ih, above, "bias_ih");
  for (const Tensor& x : w.weight_hh) check_like(x, h_0, {rows, l.hidden}, op, "weight_hh");
  for (const Tensor& x : w.weight_ih) check_like(x, h_0, {rows, l.hidden}, op, "weight_ih");
  for (const Tensor& x : w.bias_ih) check_like(x, h_0, {rows}, op, "bias_ih");
  if (w.bias_hh.empty()) check_bias(spec, l.hidden, std::nullopt, h_0, op);
  for (const Tensor& x : w.bias_hh) check_bias(spec, l.hidden, x, h_0, op);
}

Weights weights_of_one(const CellFacts& spec, const Layout& l, const Tensor& weight_hh,
                       const Optional& bias_hh, const Tensor& h_0, const std::string& op) {
  check_bias(spec, l.hidden, bias_hh, h_0, op);
  Weights weights{{dense(weight_hh)}, {}, {}, {}};
  if (bias_hh.has_value()) weights.bias_hh = {dense(*bias_hh)};
  return weights;
}

int64_t direction_count(const Tensors& weight_hh, const std::string& op) {
  SK_CHECK(weight_hh.size() == 2, "seqkernels::", op, ": expected 2 tensors weight_hh, got ",
           weight_hh.size());
  return 2;
}
int64_t layer_count(const Tensors& weight_hh, const std::string& op) {
  const int64_t count = static_cast<int64_t>(weight_hh.size());
  SK_CHECK(count > 0 && count <= kMaxParts, "seqkernels::", op, ": expected 1 to ", kMaxParts,
           " tensors weight_hh, got ", count);
  return count;
}

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

ForwardResult persistent_forward(Cell cell, Tensor gates_x, Tensor weight_hh, Optional bias_hh,
                                 Tensor h_0, Optional c_0, const RowArgs& rows, bool save) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_sequence_persistent";
  const Layout l = layout_of(gates_x, h_0, rows, op);
  check_forward(spec, l, gates_x, weight_hh, h_0, c_0, op);
  const Weights weights = weights_of_one(spec, l, weight_hh, bias_hh, h_0, op);
  return forward(cell, op, l, gates_x, weights, h_0, c_0, save);
}

BackwardResult persistent_backward(Cell cell, Given given, Tensor weight_hh, Optional bias_hh,
                                   Tensor h_0, Optional c_0, const RowArgs& rows) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_sequence_persistent_backward";
  const Layout l = layout_of(given.output, h_0, rows, op);
  check_backward(spec, l, given, weight_hh, h_0, c_0, op);
  const Weights weights = weights_of_one(spec, l, weight_hh, bias_hh, h_0, op);
  return backward(cell, op, l, given, weights, h_0, c_0);
}

ForwardResult directions_forward(Cell cell, Tensor gates_x, Tensors weight_hh, Tensors bias_hh,
                                 Tensor h_0, Optional c_0, const RowArgs& rows, bool save) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_directions_persistent";
  const Layout l = layout_of(gates_x, h_0, rows, op, direction_count(weight_hh, op));
  check_forward(spec, l, gates_x, weight_hh[0], h_0, c_0, op);
  const Weights weights{dense(weight_hh), dense(bias_hh), {}, {}};
  check_parts(spec, l, weights, h_0, op);
  return forward(cell, op, l, gates_x, weights, h_0, c_0, save);
}

BackwardResult directions_backward(Cell cell, Given given, Tensors weight_hh, Tensors bias_hh,
                                   Tensor h_0, Optional c_0, const RowArgs& rows) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_directions_persistent_backward";
  const Layout l = layout_of(given.output, h_0, rows, op, direction_count(weight_hh, op));
  check_backward(spec, l, given, weight_hh[0], h_0, c_0, op);
  const Weights weights{dense(weight_hh), dense(bias_hh), {}, {}};
  check_parts(spec, l, weights, h_0, op);
  return backward(cell, op, l, given, weights, h_0, c_0);
}

ForwardResult layers_forward(Cell cell, Tensor gates_x, Tensors weight_ih, Tensors weight_hh,
                             Tensors bias_ih, Tensors bias_hh, Tensor h_0, Optional c_0,
                             const RowArgs& rows, bool save) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_layers_persistent";
  const Layout l = layout_of(gates_x, h_0, rows, op, layer_count(weight_hh, op), true);
  check_forward(spec, l, gates_x, weight_hh[0], h_0, c_0, op);
  const Weights weights{dense(weight_hh), dense(bias_hh), dense(weight_ih), dense(bias_ih)};
  check_parts(spec, l, weights, h_0, op);
  return forward(cell, op, l, gates_x, weights, h_0, c_0, save);
}

BackwardResult layers_backward(Cell cell, Given given, Tensors weight_ih, Tensors weight_hh,
                               Tensors bias_hh, Tensor h_0, Optional c_0, const RowArgs& rows) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_layers_persistent_backward";
  const Layout l = layout_of(given.output, h_0, rows, op, layer_count(weight_hh, op), true, 1);
  check_backward(spec, l, given, weight_hh[0], h_0, c_0, op);
  const Weights weights{dense(weight_hh), dense(bias_hh), dense(weight_ih), {}};
  check_parts(spec, l, weights, h_0, op);
  return backward(cell, op, l, given, weights, h_0, c_0);
}

}  // namespace seqkernels
