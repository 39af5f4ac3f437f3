// Greedy decoding on the CPU: seqkernels::<cell>_greedy.
//
// One parallel region of torch's thread pool runs all steps. A wide batch is cut into slices of
// rows, and a thread that is free takes the next slice from start to end: no thread waits for
// another. In a narrow batch the threads share every step (group.h). 16-bit types are
// computed in float32 and rounded once, at the end.
#include <algorithm>
#include <atomic>

#include "cpu/decode/rows.h"
#include "library.h"

namespace seqkernels {
namespace cpu {
namespace {

// Rows that are worth a slice of their own: fewer would wait for the weights, not for products.
constexpr int64_t kSliceRows = 16;
// More slices than threads leave less to wait for at the end, where a thread was kept from working.
constexpr int64_t kSlicesPerThread = 2;

int64_t slice_count(int64_t rows, int64_t threads) {
  if (threads == 1 || rows < 2 * kSliceRows) return 1;
  return std::min(rows / kSliceRows, threads * kSlicesPerThread);
}

// Shares of a phase: no thread gets less than a grain of multiplications.
int64_t share_count(const DecodeWeights& weights, int64_t rows, int64_t threads) {
  const int64_t useful = weights.products * rows / ((weights.sizes.layers + 1) * kGrain);
  return std::clamp(useful, int64_t(1), threads);
}

void decode(const GreedyInputs& a, const DecodeWeights& weights, const GreedyResults& results) {
  const int64_t rows = a.start.size(0), threads = torch::stable::get_num_threads();
  const int64_t slices = slice_count(rows, threads);
  if (slices == 1) {
    const int64_t shares = share_count(weights, rows, threads);
    DecodeRows all(a, weights, results, 0, rows, shares, kTableBytes);
    torch::stable::parallel_for(0, shares, 1, [&](int64_t home, int64_t end) {
      for (; home < end; ++home) all.work(home);
    });
    return;
  }
  std::vector<std::unique_ptr<DecodeRows>> parts;
  for (int64_t g = 0; g < slices; ++g) {
    const int64_t first = rows * g / slices, last = rows * (g + 1) / slices;
    parts.push_back(std::make_unique<DecodeRows>(a, weights, results, first, last - first, 1,
                                                 kTableBytes / slices));
  }
  std::atomic<int64_t> taken{0};
  torch::stable::parallel_for(0, std::min(slices, threads), 1, [&](int64_t, int64_t) {
    for (int64_t g; (g = taken.fetch_add(1)) < slices;) parts[g]->work(0);
  });
}

GreedyResult greedy(Cell cell, GreedyInputs a) {
  Arguments arguments({facts(cell).name, "_greedy"}, a.embedding);
  check_greedy(arguments, facts(cell), &a);
  const bool wide = arguments.dtype == Dtype::kFloat64;
  const auto dtype = a.embedding.scalar_type();
  const auto compute = wide ? ScalarType::Double : ScalarType::Float;
  const auto prepare = [&](Tensor& t) {
    if (dtype != compute) t = torch::stable::to(t, compute);
  };
  for (auto* tensors : {&a.weight_ih, &a.weight_hh, &a.bias_ih, &a.bias_hh})
    for (Tensor& t : *tensors) prepare(t);
  for (Tensor* t : {&a.embedding, &a.weight_out, &a.h_0}) prepare(*t);
  if (a.bias_out) prepare(*a.bias_out);
  if (a.c_0) prepare(*a.c_0);
  const int64_t rows = a.start.size(0), *start = a.start.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r)
    SK_CHECK(start[r] >= 0 && start[r] < a.embedding.size(0), arguments.op, ": start token ",
             start[r], " of row ", r, " is outside the embedding of ", a.embedding.size(0),
             " tokens");

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
    decode(a, DecodeWeights(a, cell, wide ? Dtype::kFloat64 : Dtype::kFloat32), results);
  }
  auto rounded = [&](const Tensor& t) {
    return dtype == compute ? t : torch::stable::to(t, dtype);
  };
  return {tokens, lengths, log_probs, rounded(h_n), rounded(c_n)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CPU, m) { SK_FOR_EACH_CELL(SK_IMPL_GREEDY) }

}  // namespace cpu
}  // namespace seqkernels
