// The persistent schedule: plans a call and launches one kernel for the whole sequence.
#include "cuda/plan/plan_cache.h"
#include "cuda/tensors.h"

namespace seqkernels {
namespace {

using torch::stable::new_empty;

Math math_of(Dtype dtype, const Op& op) {
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
  SK_CHECK(false, op, ": there is no persistent kernel for float64");
}

// What forward and backward have in common: the plan, the layout on the device, and memory for the
// exchange. torch's allocator keeps what is freed behind the launch until it has run.
//
// Args:
//   lengths: the tensor behind l.lengths.
//   args: the call's own tensors; completed and launched.
void run(Cell cell, bool backward, const Arguments& a, const Layout& l, const Optional& lengths,
         const Tensor& like, const OnDevice& device, SequenceArgs args) {
  SK_CHECK(l.steps < (int64_t(1) << 30), a.op, ": the sequence of ", l.steps, " steps is too long");
  PlanRequest request;
  request.device = device.facts.limits;
  request.cell = cell, request.math = math_of(a.dtype, a.op), request.backward = backward;
  request.batch = l.batch, request.hidden = l.hidden;
  request.parts = static_cast<int>(std::max<int64_t>(1, l.parts.count));
  request.stacked = l.parts.stacked;
  const KnownPlan known = known_plan(request, device.index);
  SK_CHECK(known.planned.refusal.empty(), a.op, ": ", known.planned.refusal);
  args.plan = known.planned.plan;
  args.not_cooperative = known.not_cooperative;
  args.steps = static_cast<int32_t>(l.steps);
  args.lengths = l.lengths, args.reset = l.reset;
  const bool directions = l.parts.count > 0 && !l.parts.stacked;
  // Of two directions the second is the reverse one.
  args.reverse = directions ? 2 : l.reverse;
  if (directions) {
    args.row_stride = l.parts.count, args.part_stride = 1;
    args.reset_stride = l.steps * l.batch;
  } else if (l.parts.stacked) {
    args.part_stride = l.all_rows();
  }
  Optional order, packed, exchange;
  // A slice runs as long as its longest row: rows of like length share one. Packed rows lie so.
  if (l.lengths != nullptr && args.plan.slices > 1) {
    order = longest_first(*lengths);
    args.order = order->const_data_ptr<int64_t>();
  }
  if (l.packed()) {
    std::vector<int64_t> numbers(l.offsets.begin(), l.offsets.begin() + l.steps);
    for (int64_t n = 0, t = l.steps; n < l.batch; ++n) {
      while (t > 0 && l.batch_sizes[t - 1] <= n) --t;
      numbers.push_back(t);
    }
    const int64_t count = static_cast<int64_t>(numbers.size());
    packed = new_empty(like, {count}, ScalarType::Long);
    int64_t* to = packed->mutable_data_ptr<int64_t>();
    check_launch(launch_numbers(to, numbers.data(), count, device.stream), a.op);
    args.offsets = to;
    args.lengths = to + l.steps;
  }
  if (args.plan.exchange_bytes > 0) {
    exchange = new_empty(like, {args.plan.exchange_bytes}, ScalarType::Byte);
    args.exchange = exchange->mutable_data_ptr();
    check_launch(zero_async(args.exchange, args.plan.exchange_bytes, device.stream), a.op);
  }
  const int error = launch_persistent(cell, request.math, backward, args, device.stream);
  SK_CHECK(!refuses_launch(error), a.op, ": ", refuse_plan(request, device.index, error));
  check_launch(error, a.op);
}

void set_weights(Arguments& a, const CellFacts& spec, const Layout& l, const JointWeights& w,
                 SequenceArgs* args) {
  const int64_t hidden = l.hidden, rows = spec.gates * hidden;
  const size_t parts = std::max<int64_t>(1, l.parts.count), above = l.parts.stacked ? parts - 1 : 0;
  const auto set = [&](const char* name, const Tensors& list, size_t count, bool needed,
                       const Sizes& sizes, const void** to) {
    SK_CHECK(list.size() == count || (list.empty() && !needed), a.op, ": expected ", count,
             " tensors ", name, ", got ", list.size());
    for (size_t i = 0; i < list.size(); ++i) to[i] = a.pointer(name, list[i], sizes);
  };
  check_bias(a.op, spec, !w.bias_hh.empty());
  const int64_t biases = (spec.gates + spec.parameters) * hidden;
  set("weight_hh", w.weight_hh, parts, true, {rows, hidden}, args->weight_hh);
  set("bias_hh", w.bias_hh, parts, false, {biases}, args->bias_hh);
  set("weight_ih", w.weight_ih, above, true, {rows, hidden}, args->weight_ih + 1);
  set("bias_ih", w.bias_ih, above, false, {rows}, args->bias_ih + 1);
}

void set_state(Arguments& a, const CellFacts& spec, const Layout& l, const Tensor& h_0,
               const Optional& c_0, SequenceArgs* args) {
  check_others(a.op, spec, "c_0", c_0);
  args->h_0 = a.pointer("h_0", h_0, l.state_shape(l.hidden));
  args->c_0 = a.pointer("c_0", c_0, l.state_shape((spec.states - 1) * l.hidden));
}

ForwardResult forward(Cell cell, const Op& op, Parts parts, const JointWeights& weights,
                      const Tensor& gates_x, const Tensor& h_0, const Optional& c_0,
                      const RowArgs& rows, bool save) {
  const CellFacts& spec = facts(cell);
  Arguments a(op, h_0);
  const Layout l = layout_of(a, "gates_x", gates_x, h_0, rows, parts);
  SequenceArgs args;
  set_weights(a, spec, l, weights, &args);
  set_state(a, spec, l, h_0, c_0, &args);
  args.gates_x = a.pointer("gates_x", gates_x, l.input_shape(spec.gates * l.hidden));
  const OnDevice device(h_0);
  const ForwardResult results = new_results(spec, l, h_0, save);
  const auto& [output, h_n, c_n, c_sequence, saved] = results;
  args.h_n = out(h_n), args.c_n = out(c_n);
  args.output = out(output), args.c_sequence = out(c_sequence), args.saved = out(saved);
  if (l.batch > 0) run(cell, false, a, l, rows.lengths, h_0, device, args);
  return results;
}

BackwardResult backward(Cell cell, const Op& op, Parts parts, const JointWeights& weights,
                        const Given& inputs, const Tensor& h_0, const Optional& c_0,
                        const RowArgs& rows) {
  const CellFacts& spec = facts(cell);
  Arguments a(op, h_0);
  const Layout l = layout_of(a, "output", inputs.output, h_0, rows, parts, parts.stacked);
  SequenceArgs args;
  set_weights(a, spec, l, weights, &args);
  set_state(a, spec, l, h_0, c_0, &args);
  const GivenPointers given = given_pointers(a, spec, l, inputs);
  // The kernel takes one set of pointers forward and backward; the backward only reads these.
  args.output = const_cast<void*>(given.output);
  args.c_sequence = const_cast<void*>(given.c_sequence);
  args.saved = const_cast<void*>(given.saved);
  args.grad_output = given.grad_output, args.grad_c_sequence = given.grad_c_sequence;
  args.grad_h_n = given.grad_h_n, args.grad_c_n = given.grad_c_n;
  const OnDevice device(h_0);
  const BackwardResult grads = new_grads(spec, l, h_0);
  const auto& [grad_gates_x, grad_separate, grad_h_0, grad_c_0] = grads;
  args.grad_gates_x = out(grad_gates_x), args.grad_separate = out(grad_separate);
  args.grad_h_0 = out(grad_h_0), args.grad_c_0 = out(grad_c_0);
  if (l.batch > 0) run(cell, true, a, l, rows.lengths, h_0, device, args);
  return grads;
}

JointWeights weights_of_one(const Tensor& weight_hh, const Optional& bias_hh) {
  return {{}, {weight_hh}, {}, bias_hh ? Tensors{*bias_hh} : Tensors{}};
}
Parts parts_of(const Op& op, bool stacked, const JointWeights& weights) {
  const int64_t count = static_cast<int64_t>(weights.weight_hh.size());
  SK_CHECK(stacked ? count > 0 && count <= kMaxParts : count == 2, op, ": expected ",
           stacked ? "1 to " + std::to_string(kMaxParts) : "2", " tensors weight_hh, got ", count);
  return {count, stacked};
}

template <Math math>
int launch_format(Cell cell, bool backward, const SequenceArgs& args, void* stream) {
  if (!backward) return launch_persistent_as<math, Pass::kForward>(cell, args, stream);
  if (args.plan.stacked == 0)
    return launch_persistent_as<math, Pass::kBackward>(cell, args, stream);
  return launch_persistent_as<math, Pass::kStackedBackward>(cell, args, stream);
}

}  // namespace

int launch_persistent(Cell cell, Math math, bool backward, const SequenceArgs& args, void* stream) {
  switch (math) {
    case Math::kHalf:
      return launch_format<Math::kHalf>(cell, backward, args, stream);
    case Math::kBFloat16:
      return launch_format<Math::kBFloat16>(cell, backward, args, stream);
    case Math::kTf32:
      return launch_format<Math::kTf32>(cell, backward, args, stream);
    case Math::kFloat32:
      return launch_format<Math::kFloat32>(cell, backward, args, stream);
  }
  return 1;  // cudaErrorInvalidValue
}

ForwardResult persistent_forward(Cell cell, const ForwardInputs& in) {
  return forward(cell, {facts(cell).name, "_sequence_persistent"}, {},
                 weights_of_one(in.weight_hh, in.bias_hh), in.gates_x, in.h_0, in.c_0, in.rows,
                 in.save);
}
BackwardResult persistent_backward(Cell cell, const BackwardInputs& in) {
  return backward(cell, {facts(cell).name, "_sequence_persistent_backward"}, {},
                  weights_of_one(in.weight_hh, in.bias_hh), in.given, in.h_0, in.c_0, in.rows);
}

ForwardResult joint_forward(Cell cell, bool stacked, const JointWeights& weights,
                            const Tensor& gates_x, const Tensor& h_0, const Optional& c_0,
                            const RowArgs& rows, bool save) {
  const Op op{facts(cell).name, stacked ? "_layers_persistent" : "_directions_persistent"};
  return forward(cell, op, parts_of(op, stacked, weights), weights, gates_x, h_0, c_0, rows, save);
}
BackwardResult joint_backward(Cell cell, bool stacked, const JointWeights& weights,
                              const Given& given, const Tensor& h_0, const Optional& c_0,
                              const RowArgs& rows) {
  const Op op{facts(cell).name,
              stacked ? "_layers_persistent_backward" : "_directions_persistent_backward"};
  return backward(cell, op, parts_of(op, stacked, weights), weights, given, h_0, c_0, rows);
}

}  // namespace seqkernels
