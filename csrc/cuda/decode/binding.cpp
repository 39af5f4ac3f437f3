// Greedy decoding on CUDA: seqkernels::<cell>_greedy for decode.h.
#include <map>
#include <mutex>

#include "cuda/decode/launch.h"
#include "cuda/tensors.h"
#include "greedy_ops.h"

namespace seqkernels {
namespace {

int element_size(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

int launch_decode(Cell cell, Dtype dtype, const DecodeArgs& args, void* stream) {
  switch (dtype) {
    case Dtype::kFloat32:
      return launch_decode_as<Dtype::kFloat32>(cell, args, stream);
    case Dtype::kFloat16:
      return launch_decode_as<Dtype::kFloat16>(cell, args, stream);
    case Dtype::kBFloat16:
      return launch_decode_as<Dtype::kBFloat16>(cell, args, stream);
    case Dtype::kFloat64:
      break;
  }
  return 1;  // cudaErrorInvalidValue
}

// Launches that the driver has refused, by all that they depend on.
using Refused = std::map<std::array<int64_t, 9>, std::string>;
std::mutex mutex;
Refused refused;
std::array<int64_t, 9> key_of(const DecodeSizes& s, int device) {
  return {s.gates,  s.states,     s.layers,       s.rows, s.embedding,
          s.hidden, s.vocabulary, s.element_size, device};
}
std::string decode_refusal(const DecodeSizes& sizes, const OnDevice& device) {
  const DecodePlan plan = decode_plan(sizes, device.facts.limits);
  if (plan.refusal != nullptr) return plan.refusal;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = refused.find(key_of(sizes, device.index));
  return found == refused.end() ? "" : found->second;
}

std::string greedy_refusal(Tensor embedding, int64_t gates, int64_t states, int64_t layers,
                           int64_t rows, int64_t hidden, int64_t vocabulary) {
  const OnDevice device(embedding);
  DecodeSizes sizes;
  sizes.gates = int(gates), sizes.states = int(states), sizes.layers = int(layers);
  sizes.rows = int(rows), sizes.hidden = int(hidden), sizes.vocabulary = int(vocabulary);
  sizes.embedding = int(embedding.size(1));
  sizes.element_size = element_size(dtype_of(embedding, {"greedy_refusal"}));
  return decode_refusal(sizes, device);
}

GreedyResult greedy(Cell cell, GreedyInputs w) {
  const CellFacts& spec = facts(cell);
  Arguments a({spec.name, "_greedy"}, w.embedding);
  const GreedySizes s = check_greedy(a, spec, &w);
  const Dtype dtype = a.dtype;
  DecodeArgs args;
  args.sizes = {spec.gates,       spec.states,   int(s.layers),     int(s.rows),
                int(s.embedding), int(s.hidden), int(s.vocabulary), element_size(dtype)};
  const OnDevice device(w.embedding);
  args.plan = decode_plan(args.sizes, device.facts.limits);
  const std::string refusal = decode_refusal(args.sizes, device);
  SK_CHECK(refusal.empty(), a.op, ": the persistent kernel cannot run this call: ", refusal);

  const int64_t rows = args.sizes.rows, blocks = args.plan.blocks;
  using torch::stable::new_empty;
  const Tensor tokens = make(w.start, {rows, w.max_length});
  torch::stable::fill_(tokens, double(w.pad));
  const Tensor lengths = torch::stable::new_zeros(w.start, {rows});
  const Tensor log_probs =
      torch::stable::new_zeros(w.h_0, {w.scores ? rows : 0}, carry_type(dtype));
  const Tensor h_n = torch::stable::clone(w.h_0);
  const Tensor c_n = w.c_0 ? torch::stable::clone(*w.c_0) : absent(w.h_0);
  if (rows == 0 || w.max_length == 0) return {tokens, lengths, log_probs, h_n, c_n};

  const Tensor h = new_empty(w.h_0, {2, s.layers, rows, s.hidden}, ScalarType::Float);
  const Tensor best = new_empty(w.h_0, {blocks, rows}, ScalarType::Float);
  const Tensor sum = new_empty(w.h_0, {blocks, rows}, ScalarType::Float);
  const Tensor word = new_empty(w.start, {blocks, rows}, ScalarType::Int);
  const Tensor counter = new_empty(w.start, {1}, ScalarType::Int);
  check_launch(zero_async(out(counter), 4, device.stream), a.op);
  check_launch(launch_widen(dtype, out(h), in(w.h_0), w.h_0.numel(), device.stream), a.op);

  args.embedding = in(w.embedding), args.tokens = w.embedding.size(0);
  for (int l = 0; l < args.sizes.layers; ++l) {
    args.weight_ih[l] = in(w.weight_ih[l]), args.weight_hh[l] = in(w.weight_hh[l]);
    args.bias_ih[l] = w.bias_ih.empty() ? nullptr : in(w.bias_ih[l]);
    args.bias_hh[l] = w.bias_hh.empty() ? nullptr : in(w.bias_hh[l]);
  }
  args.weight_out = in(w.weight_out);
  args.bias_out = w.bias_out ? in(*w.bias_out) : nullptr;
  args.c_0 = w.c_0 ? in(*w.c_0) : nullptr;
  args.start = w.start.const_data_ptr<int64_t>();
  args.max_length = w.max_length, args.eos = w.eos, args.scores = w.scores;
  args.h = static_cast<float*>(out(h)), args.best = static_cast<float*>(out(best));
  args.sum = static_cast<float*>(out(sum)), args.word = static_cast<int*>(out(word));
  args.counter = static_cast<uint32_t*>(out(counter));
  args.chosen = tokens.mutable_data_ptr<int64_t>();
  args.lengths = lengths.mutable_data_ptr<int64_t>();
  args.log_probs = static_cast<float*>(out(log_probs));
  args.h_n = out(h_n), args.c_n = out(c_n);
  const int error = launch_decode(cell, dtype, args, device.stream);
  if (refuses_launch(error)) {
    const std::lock_guard<std::mutex> lock(mutex);
    refused[key_of(args.sizes, device.index)] = refusal_of(error);
    SK_CHECK(false, a.op, ": ", refusal_of(error));
  }
  check_launch(error, a.op);
  return {tokens, lengths, log_probs, h_n, c_n};
}

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  using namespace seqkernels;
  SK_FOR_EACH_CELL(SK_IMPL_GREEDY)
  m.impl("greedy_refusal", TORCH_BOX(&greedy_refusal));
}
