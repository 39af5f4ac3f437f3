// Greedy decoding on CUDA: seqkernels::<cell>_greedy for decode.h.
#include <map>
#include <mutex>

#include "cuda/decode/launch.h"
#include "cuda/tensors.h"

namespace seqkernels {
namespace {

using Tensors = std::vector<Tensor>;

int element_size(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

int launch_decode(Cell cell, Dtype dtype, const DecodeArgs& args, void* stream) {
  switch (dtype) {
    case Dtype::kFloat32:
      return launch_decode_float32(cell, args, stream);
    case Dtype::kFloat16:
      return launch_decode_half(cell, args, stream);
    case Dtype::kBFloat16:
      return launch_decode_bfloat16(cell, args, stream);
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
  const DecodePlan plan = decode_plan(sizes, device.facts);
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
  sizes.element_size = element_size(dtype_of(embedding, "greedy"));
  return decode_refusal(sizes, device);
}

struct Weights {
  Tensor embedding;
  Tensors weight_ih, weight_hh, bias_ih, bias_hh;
  Tensor weight_out;
  Optional bias_out;
};

// Shapes, dtypes and devices; makes everything contiguous.
DecodeSizes check(const CellFacts& spec, Weights& w, Tensor& h_0, Optional& c_0, Tensor& start,
                  const std::string& op) {
  DecodeSizes sizes;
  SK_CHECK(spec.stages == 1 && spec.parameters == 0, "seqkernels::", op,
           ": greedy decoding takes cells whose step has one product and no parameters");
  SK_CHECK(w.embedding.dim() == 2 && w.weight_out.dim() == 2 && start.dim() == 1,
           "seqkernels::", op, ": embedding and weight_out must be matrices, start a vector");
  SK_CHECK(!w.weight_hh.empty() && w.weight_ih.size() == w.weight_hh.size(), "seqkernels::", op,
           ": ", w.weight_ih.size(), " weight_ih for ", w.weight_hh.size(), " weight_hh");
  const int64_t layers = w.weight_hh.size(), rows = start.size(0);
  const int64_t hidden = w.weight_out.size(1), vocabulary = w.weight_out.size(0);
  SK_CHECK(hidden > 0 && vocabulary > 0 && vocabulary <= w.embedding.size(0), "seqkernels::", op,
           ": state of ", hidden, ", scores for ", vocabulary, " tokens, embedding of ",
           w.embedding.size(0));
  for (const Tensors* biases : {&w.bias_ih, &w.bias_hh})
    SK_CHECK(biases->empty() || int64_t(biases->size()) == layers, "seqkernels::", op, ": ",
             biases->size(), " biases for ", layers, " layers");
  const int64_t width = spec.gates * hidden;
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t depth = l == 0 ? w.embedding.size(1) : hidden;
    check_like(w.weight_ih[l], w.embedding, {width, depth}, op, "weight_ih");
    check_like(w.weight_hh[l], w.embedding, {width, hidden}, op, "weight_hh");
    if (!w.bias_ih.empty()) check_like(w.bias_ih[l], w.embedding, {width}, op, "bias_ih");
    if (!w.bias_hh.empty()) check_like(w.bias_hh[l], w.embedding, {width}, op, "bias_hh");
  }
  check_like(w.weight_out, w.embedding, {vocabulary, hidden}, op, "weight_out");
  check_like(w.bias_out, w.embedding, {vocabulary}, op, "bias_out");
  check_like(h_0, w.embedding, {layers, rows, hidden}, op, "h_0");
  check_others(spec, c_0, w.embedding, {layers, rows, (spec.states - 1) * hidden}, op, "c_0");
  SK_CHECK(start.scalar_type() == ScalarType::Long, "seqkernels::", op, ": start must be int64");
  for (Tensors* tensors : {&w.weight_ih, &w.weight_hh, &w.bias_ih, &w.bias_hh})
    for (Tensor& t : *tensors) t = dense(t);
  for (Tensor* t : {&w.embedding, &w.weight_out, &h_0, &start}) *t = dense(*t);
  w.bias_out = dense(w.bias_out), c_0 = dense(c_0);
  sizes.gates = spec.gates, sizes.states = spec.states, sizes.layers = int(layers);
  sizes.rows = int(rows), sizes.embedding = int(w.embedding.size(1));
  sizes.hidden = int(hidden), sizes.vocabulary = int(vocabulary);
  return sizes;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy(Cell cell, Weights w, Tensor h_0,
                                                          Optional c_0, Tensor start,
                                                          int64_t max_length, int64_t eos,
                                                          int64_t pad, bool scores) {
  const CellFacts& spec = facts(cell);
  const std::string op = std::string(spec.name) + "_greedy";
  const Dtype dtype = dtype_of(w.embedding, op);
  DecodeArgs args;
  args.sizes = check(spec, w, h_0, c_0, start, op);
  args.sizes.element_size = element_size(dtype);
  SK_CHECK(max_length >= 0 && eos < args.sizes.vocabulary, "seqkernels::", op, ": max_length is ",
           max_length, ", eos ", eos, " of ", args.sizes.vocabulary, " tokens");
  const OnDevice device(w.embedding);
  args.plan = decode_plan(args.sizes, device.facts);
  const std::string refusal = decode_refusal(args.sizes, device);
  SK_CHECK(refusal.empty(), "seqkernels::", op,
           ": the persistent kernel cannot run this call: ", refusal);

  const int64_t rows = args.sizes.rows, blocks = args.plan.blocks;
  const auto integers = [&](std::vector<int64_t> sizes, ScalarType type) {
    return torch::stable::new_empty(start, sizes, type);
  };
  const Tensor tokens = integers({rows, max_length}, ScalarType::Long);
  torch::stable::fill_(tokens, double(pad));
  const Tensor lengths = torch::stable::new_zeros(start, {rows});
  const Tensor log_probs = torch::stable::new_zeros(h_0, {scores ? rows : 0}, carry_type(dtype));
  const Tensor h_n = torch::stable::clone(h_0);
  const Tensor c_n = c_0.has_value() ? torch::stable::clone(*c_0) : absent(h_0);
  if (rows == 0 || max_length == 0) return {tokens, lengths, log_probs, h_n, c_n};

  const Tensor h = torch::stable::new_empty(h_0, {2, args.sizes.layers, rows, args.sizes.hidden},
                                            ScalarType::Float);
  const Tensor best = torch::stable::new_empty(h_0, {blocks, rows}, ScalarType::Float);
  const Tensor sum = torch::stable::new_empty(h_0, {blocks, rows}, ScalarType::Float);
  const Tensor word = integers({blocks, rows}, ScalarType::Int);
  const Tensor counter = integers({1}, ScalarType::Int);
  check_launch(zero_async(out(counter), 4, device.stream), op);
  check_launch(launch_widen(dtype, out(h), in(h_0), h_0.numel(), device.stream), op);

  args.embedding = in(w.embedding), args.tokens = w.embedding.size(0);
  for (int l = 0; l < args.sizes.layers; ++l) {
    args.weight_ih[l] = in(w.weight_ih[l]), args.weight_hh[l] = in(w.weight_hh[l]);
    args.bias_ih[l] = w.bias_ih.empty() ? nullptr : in(w.bias_ih[l]);
    args.bias_hh[l] = w.bias_hh.empty() ? nullptr : in(w.bias_hh[l]);
  }
  args.weight_out = in(w.weight_out), args.bias_out = in(w.bias_out), args.c_0 = in(c_0);
  args.start = start.const_data_ptr<int64_t>();
  args.max_length = max_length, args.eos = eos, args.scores = scores;
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
    SK_CHECK(false, "seqkernels::", op, ": ", refusal_of(error));
  }
  check_launch(error, op);
  return {tokens, lengths, log_probs, h_n, c_n};
}

template <Cell kCell>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy_op(
    Tensor embedding, Tensors weight_ih, Tensors weight_hh, Tensors bias_ih, Tensors bias_hh,
    Tensor weight_out, Optional bias_out, Tensor h_0, Optional c_0, Tensor start,
    int64_t max_length, int64_t eos, int64_t pad, bool scores) {
  return greedy(kCell, {embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out},
                h_0, c_0, start, max_length, eos, pad, scores);
}

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, SK_DEVICE_KEY, m) {
  using namespace seqkernels;
#define SK_IMPL(Type, name) \
  if constexpr (kPointwise<Type>) m.impl(#name "_greedy", TORCH_BOX((&greedy_op<kCellOf<Type>>)));
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
  m.impl("greedy_refusal", TORCH_BOX(&greedy_refusal));
}
