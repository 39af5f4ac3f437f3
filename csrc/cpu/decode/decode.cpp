// Greedy decoding on the CPU: seqkernels::<cell>_greedy.
//
// One parallel region of torch's thread pool runs all steps. A wide batch is cut into groups of
// rows, and a thread that is free takes the next group from start to end: no thread waits for
// another. In a narrow batch the threads share every step (team.h). 16-bit types are
// computed in float32 and rounded once, at the end.
#include <algorithm>
#include <atomic>
#include <tuple>

#include "cpu/checks.h"
#include "cpu/decode/rows.h"
#include "library.h"

namespace seqkernels {
namespace cpu {
namespace {

// Rows that are worth a group of their own: fewer would wait for the weights, not for products.
constexpr int64_t kGroupRows = 16;
// More groups than threads leave less to wait for at the end, where a thread was kept from working.
constexpr int64_t kGroupsPerThread = 2;

Dtype check(const GreedyInputs& a, int gates, int states) {
  const char* op = "greedy";
  Arguments check(op, a.embedding);
  const int64_t layers = a.weight_hh.size(), rows = a.start.dim() == 1 ? a.start.size(0) : 0;
  SK_CHECK(layers > 0 && int64_t(a.weight_ih.size()) == layers, op, ": ", a.weight_ih.size(),
           " weight_ih for ", layers, " weight_hh");
  SK_CHECK(a.embedding.dim() == 2 && a.weight_hh[0].dim() == 2 && a.weight_out.dim() == 2, op,
           ": embedding, weight_hh and weight_out must be matrices");
  const int64_t tokens = a.embedding.size(0), vocabulary = a.weight_out.size(0);
  const int64_t hidden = a.weight_hh[0].size(1), width = gates * hidden;
  SK_CHECK(hidden > 0 && vocabulary > 0 && vocabulary <= tokens, op, ": state of ", hidden,
           ", scores for ", vocabulary, " tokens, embedding of ", tokens);
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t depth = l == 0 ? a.embedding.size(1) : hidden;
    check.pointer("weight_ih", a.weight_ih[l], {width, depth});
    check.pointer("weight_hh", a.weight_hh[l], {width, hidden});
  }
  for (const auto* biases : {&a.bias_ih, &a.bias_hh}) {
    SK_CHECK(biases->empty() || int64_t(biases->size()) == layers, op, ": ", biases->size(),
             " biases for ", layers, " layers");
    for (const Tensor& bias : *biases) check.pointer("bias", bias, {width});
  }
  check.pointer("weight_out", a.weight_out, {vocabulary, hidden});
  check.pointer("bias_out", a.bias_out, {vocabulary});
  check.pointer("h_0", a.h_0, {layers, rows, hidden});
  SK_CHECK(a.c_0.has_value() == (states > 1), op,
           states > 1 ? ": c_0 is missing" : ": this cell has no c_0");
  check.pointer("c_0", a.c_0, {layers, rows, (states - 1) * hidden});
  check.integers("start", a.start, {rows});
  SK_CHECK(a.max_length >= 0, op, ": max_length is ", a.max_length);
  SK_CHECK(a.eos < vocabulary, op, ": eos ", a.eos, " is outside the vocabulary of ", vocabulary);
  return check.dtype();
}

int64_t group_count(int64_t rows, int64_t threads) {
  if (threads == 1 || rows < 2 * kGroupRows) return 1;
  return std::min(rows / kGroupRows, threads * kGroupsPerThread);
}

// Chunks of a phase: no thread gets less than a grain of multiplications.
int64_t chunk_count(const DecodeWeights& weights, int64_t rows, int64_t threads) {
  const int64_t useful = weights.products * rows / ((weights.sizes.layers + 1) * kGrain);
  return std::clamp(useful, int64_t(1), threads);
}

void decode(const GreedyInputs& a, const DecodeWeights& weights, const GreedyResults& results) {
  const int64_t rows = a.start.size(0), threads = torch::stable::get_num_threads();
  const int64_t groups = group_count(rows, threads);
  if (groups == 1) {
    const int64_t chunks = chunk_count(weights, rows, threads);
    DecodeRows all(a, weights, results, 0, rows, chunks, kTableBytes);
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t home, int64_t end) {
      for (; home < end; ++home) all.work(home);
    });
    return;
  }
  std::vector<std::unique_ptr<DecodeRows>> parts;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = rows * g / groups, last = rows * (g + 1) / groups;
    parts.push_back(std::make_unique<DecodeRows>(a, weights, results, first, last - first, 1,
                                                 kTableBytes / groups));
  }
  std::atomic<int64_t> taken{0};
  torch::stable::parallel_for(0, std::min(groups, threads), 1, [&](int64_t, int64_t) {
    for (int64_t g; (g = taken.fetch_add(1)) < groups;) parts[g]->work(0);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy(GreedyInputs a, Cell cell, int gates,
                                                          int states) {
  const bool wide = check(a, gates, states) == Dtype::kFloat64;
  const auto dtype = a.embedding.scalar_type();
  const auto compute = wide ? ScalarType::Double : ScalarType::Float;
  auto prepare = [&](Tensor& t) {
    t = torch::stable::contiguous(t.scalar_type() == compute ? t : torch::stable::to(t, compute));
  };
  for (auto* tensors : {&a.weight_ih, &a.weight_hh, &a.bias_ih, &a.bias_hh})
    for (Tensor& t : *tensors) prepare(t);
  for (Tensor* t : {&a.embedding, &a.weight_out, &a.h_0}) prepare(*t);
  if (a.bias_out) prepare(*a.bias_out);
  if (a.c_0) prepare(*a.c_0);
  a.start = torch::stable::contiguous(a.start);
  const int64_t rows = a.start.size(0), *start = a.start.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r)
    SK_CHECK(start[r] >= 0 && start[r] < a.embedding.size(0), "greedy: start token ", start[r],
             " of row ", r, " is outside the embedding of ", a.embedding.size(0), " tokens");

  Tensor tokens = torch::stable::full({rows, a.max_length}, double(a.pad), ScalarType::Long);
  Tensor lengths = torch::stable::full({rows}, 0.0, ScalarType::Long);
  Tensor log_probs = torch::stable::full({a.scores ? rows : 0}, 0.0, compute);
  Tensor h_n = torch::stable::clone(a.h_0);
  Tensor c_n = a.c_0 ? torch::stable::clone(*a.c_0) : torch::stable::empty({0}, compute);
  if (rows > 0 && a.max_length > 0) {
    auto bytes = [](Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()); };
    const GreedyResults results = {tokens.mutable_data_ptr<int64_t>(),
                                   lengths.mutable_data_ptr<int64_t>(), bytes(log_probs),
                                   bytes(h_n), bytes(c_n)};
    decode(a, DecodeWeights(a, cell, gates, wide ? Dtype::kFloat64 : Dtype::kFloat32), results);
  }
  auto rounded = [&](const Tensor& t) {
    return dtype == compute ? t : torch::stable::to(t, dtype);
  };
  return {tokens, lengths, log_probs, rounded(h_n), rounded(c_n)};
}

template <typename C>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy_op(
    Tensor embedding, std::vector<Tensor> weight_ih, std::vector<Tensor> weight_hh,
    std::vector<Tensor> bias_ih, std::vector<Tensor> bias_hh, Tensor weight_out,
    std::optional<Tensor> bias_out, Tensor h_0, std::optional<Tensor> c_0, Tensor start,
    int64_t max_length, int64_t eos, int64_t pad, bool scores) {
  return greedy({embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out, h_0, c_0,
                 start, max_length, eos, pad, scores},
                kCellOf<C>, C::kGates, C::kStates);
}

template <typename C, typename Library>
void register_greedy(Library& m, const char* name) {
  if constexpr (kPointwise<C>) m.impl(name, TORCH_BOX((&greedy_op<C>)));
}

}  // namespace
}  // namespace cpu
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CPU, m) {
  using namespace seqkernels;
#define SK_IMPL(Type, name) cpu::register_greedy<Type>(m, #name "_greedy");
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
}
