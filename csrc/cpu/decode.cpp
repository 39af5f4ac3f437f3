// Greedy decoding on the CPU: seqkernels::<cell>_greedy.
//
// One parallel region of torch's thread pool runs all steps (decode_team.h). The gates that the
// embedding gives to layer 0 depend on the token alone: they are computed when a token first
// appears and kept, unless the table would be large. Rows that have ended leave their slot to the
// last running row. 16-bit types are computed in float32 and rounded once, at the end.
#include "decode.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "decode_team.h"

namespace seqkernels {
namespace cpu {
namespace {

// Above this many rows packing the weights pays within one call: bench/results, suite decode.
constexpr int64_t kUnpackedRows = 2;
// The table of gates by token is kept while it is smaller than this.
constexpr int64_t kTableBytes = int64_t(64) << 20;
// Multiplications of a phase that are worth a second thread.
constexpr int64_t kGrain = int64_t(1) << 15;

struct Inputs {
  Tensor embedding;
  std::vector<Tensor> weight_ih, weight_hh, bias_ih, bias_hh;
  Tensor weight_out;
  std::optional<Tensor> bias_out;
  Tensor h_0;
  std::optional<Tensor> c_0;
  Tensor start;
  int64_t max_length, eos, pad;
  bool scores;
};

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Memory that lives as long as the call, aligned to a vector.
class Workspace {
 public:
  void* take(int64_t bytes) {
    blocks_.emplace_back(::operator new(bytes, kAlignment));
    return blocks_.back().get();
  }
  void* zeros(int64_t bytes) { return std::memset(take(bytes), 0, bytes); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(void* p) const { ::operator delete(p, kAlignment); }
  };
  std::vector<std::unique_ptr<void, Release>> blocks_;
};

Dtype check(const Inputs& a, int gates, int states) {
  const char* op = "greedy";
  Arguments check(op, a.embedding);
  const int64_t layers = a.weight_hh.size(), rows = a.start.dim() == 1 ? a.start.size(0) : 0;
  STD_TORCH_CHECK(layers > 0 && int64_t(a.weight_ih.size()) == layers, op, ": ", a.weight_ih.size(),
                  " weight_ih for ", layers, " weight_hh");
  STD_TORCH_CHECK(a.embedding.dim() == 2 && a.weight_hh[0].dim() == 2 && a.weight_out.dim() == 2,
                  op, ": embedding, weight_hh and weight_out must be matrices");
  const int64_t tokens = a.embedding.size(0), vocabulary = a.weight_out.size(0);
  const int64_t hidden = a.weight_hh[0].size(1), width = gates * hidden;
  STD_TORCH_CHECK(hidden > 0 && vocabulary > 0 && vocabulary <= tokens, op, ": state of ", hidden,
                  ", scores for ", vocabulary, " tokens, embedding of ", tokens);
  for (int64_t l = 0; l < layers; ++l) {
    const int64_t depth = l == 0 ? a.embedding.size(1) : hidden;
    check.pointer("weight_ih", a.weight_ih[l], {width, depth});
    check.pointer("weight_hh", a.weight_hh[l], {width, hidden});
  }
  for (const auto* biases : {&a.bias_ih, &a.bias_hh}) {
    STD_TORCH_CHECK(biases->empty() || int64_t(biases->size()) == layers, op, ": ", biases->size(),
                    " biases for ", layers, " layers");
    for (const Tensor& bias : *biases) check.pointer("bias", bias, {width});
  }
  check.pointer("weight_out", a.weight_out, {vocabulary, hidden});
  check.pointer("bias_out", a.bias_out, {vocabulary});
  check.pointer("h_0", a.h_0, {layers, rows, hidden});
  STD_TORCH_CHECK(a.c_0.has_value() == (states == 2), op, ": c_0 is for lstm, and lstm needs it");
  check.pointer("c_0", a.c_0, {layers, rows, hidden});
  check.integers("start", a.start, rows);
  STD_TORCH_CHECK(a.max_length >= 0, op, ": max_length is ", a.max_length);
  STD_TORCH_CHECK(a.eos < vocabulary, op, ": eos ", a.eos, " is outside the vocabulary of ",
                  vocabulary);
  return check.dtype();
}

// One call: its buffers and what happens between the phases.
class Decoding {
 public:
  Decoding(const Inputs& a, Cell cell, int gates, int states, Dtype dtype);
  void run();

  Tensor tokens, lengths, log_probs, h_n, c_n;  // the state in the compute type

 private:
  DecodeMatrix matrix(const Tensor& weight, const Tensor* bias, int64_t width, bool pack);
  void pack();
  void place(int64_t slot, int64_t token);
  void finish(int64_t slot);
  bool next();
  void choose();
  void work(int64_t chunk);

  const Inputs& a_;
  const DecodeKernels& kernels_;
  Workspace memory_;
  Decode d_ = {};
  std::vector<DecodeMatrix> weight_ih_, weight_hh_;
  std::vector<void*> h_, new_h_, c_, missing_gates_;
  std::vector<const void*> gates_x_;
  std::vector<int64_t> row_, word_;
  std::vector<double> log_prob_;
  std::vector<char> known_;  // tokens whose gates are in the table
  char *table_ = nullptr, *scratch_ = nullptr;
  const char* embedding_;
  int64_t gates_bytes_, token_bytes_, chunks_ = 1, step_ = 0, stage_ = 0;
  const int64_t* start_;
  int64_t *tokens_, *lengths_;
};

DecodeMatrix Decoding::matrix(const Tensor& weight, const Tensor* bias, int64_t width, bool pack) {
  DecodeMatrix m;
  m.depth = weight.size(1);
  m.weight = weight.const_data_ptr();
  m.bias = bias ? bias->const_data_ptr() : nullptr;
  m.packed = pack ? memory_.take(width * m.depth * kernels_.element_size) : nullptr;
  m.packed_bias = memory_.take(width * kernels_.element_size);
  return m;
}

Decoding::Decoding(const Inputs& a, Cell cell, int gates, int states, Dtype dtype)
    : a_(a), kernels_(decode_kernels(cell, dtype)) {
  const int64_t bytes = kernels_.element_size, rows = a.start.size(0);
  const bool packed = rows > kUnpackedRows;
  d_.layers = a.weight_hh.size(), d_.hidden = a.weight_hh[0].size(1);
  d_.vocabulary = a.weight_out.size(0);
  d_.cell_panels = (d_.hidden + kernels_.units - 1) / kernels_.units;
  d_.word_panels = (d_.vocabulary + kernels_.words - 1) / kernels_.words;
  d_.stride = d_.cell_panels * kernels_.units;
  d_.input_stride = round_up(a.embedding.size(1), kernels_.lanes);
  d_.capacity = d_.rows = rows;
  d_.scores = a.scores;

  const int64_t cell_width = d_.stride * gates, word_width = d_.word_panels * kernels_.words;
  for (int64_t l = 0; l < d_.layers; ++l) {
    const Tensor* bias_ih = a.bias_ih.empty() ? nullptr : &a.bias_ih[l];
    const Tensor* bias_hh = a.bias_hh.empty() ? nullptr : &a.bias_hh[l];
    weight_ih_.push_back(matrix(a.weight_ih[l], bias_ih, cell_width, packed));
    weight_hh_.push_back(matrix(a.weight_hh[l], bias_hh, cell_width, packed));
  }
  d_.weight_ih = weight_ih_.data(), d_.weight_hh = weight_hh_.data();
  d_.projection = matrix(a.weight_out, a.bias_out ? &*a.bias_out : nullptr, word_width, packed);

  const int64_t state_bytes = rows * d_.stride * bytes;
  for (int64_t l = 0; l < d_.layers; ++l) {
    h_.push_back(memory_.zeros(state_bytes));
    new_h_.push_back(memory_.zeros(state_bytes));
    c_.push_back(states == 2 ? memory_.zeros(state_bytes) : nullptr);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = (l * rows + r) * d_.hidden * bytes, to = r * d_.stride * bytes;
      auto copy = [&](void* p, const Tensor& state) {
        std::memcpy(static_cast<char*>(p) + to,
                    static_cast<const char*>(state.const_data_ptr()) + from, d_.hidden * bytes);
      };
      copy(h_[l], a.h_0);
      if (states == 2) copy(c_[l], *a.c_0);
    }
  }
  d_.h = h_.data(), d_.new_h = new_h_.data(), d_.c = c_.data();

  embedding_ = static_cast<const char*>(a.embedding.const_data_ptr());
  token_bytes_ = a.embedding.size(1) * bytes;
  gates_bytes_ = cell_width * bytes;
  gates_x_.resize(rows), missing_gates_.resize(rows);
  d_.gates_x = gates_x_.data(), d_.missing_gates = missing_gates_.data();
  d_.input = memory_.zeros(rows * d_.input_stride * bytes);
  if (a.embedding.size(0) * gates_bytes_ <= kTableBytes) {
    table_ = static_cast<char*>(memory_.take(a.embedding.size(0) * gates_bytes_));
    known_.assign(a.embedding.size(0), 0);
  } else {
    scratch_ = static_cast<char*>(memory_.take(rows * gates_bytes_));
  }

  row_.resize(rows), log_prob_.assign(rows, 0.0);
  tokens = torch::stable::full({rows, a.max_length}, double(a.pad), ScalarType::Long);
  lengths = torch::stable::full({rows}, 0.0, ScalarType::Long);
  const auto type = dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
  log_probs = torch::stable::empty({a.scores ? rows : 0}, type);
  h_n = torch::stable::clone(a.h_0);
  c_n = a.c_0 ? torch::stable::clone(*a.c_0) : torch::stable::empty({0}, type);
  tokens_ = tokens.mutable_data_ptr<int64_t>(), lengths_ = lengths.mutable_data_ptr<int64_t>();
  start_ = a.start.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r)
    STD_TORCH_CHECK(start_[r] >= 0 && start_[r] < a.embedding.size(0), "greedy: start token ",
                    start_[r], " of row ", r, " is outside the embedding of ", a.embedding.size(0),
                    " tokens");
}

// All panels of all matrices, by torch's threads.
void Decoding::pack() {
  auto all = [&](const DecodeMatrix& m, bool cell, int64_t panels) {
    const int64_t grain = m.packed ? 1 + 32768 / (m.depth * kernels_.words) : panels;
    torch::stable::parallel_for(0, panels, grain, [&](int64_t p0, int64_t p1) {
      cell ? kernels_.pack_cell(m, d_.hidden, p0, p1)
           : kernels_.pack_projection(m, d_.vocabulary, p0, p1);
    });
  };
  for (const DecodeMatrix& m : weight_ih_) all(m, true, d_.cell_panels);
  for (const DecodeMatrix& m : weight_hh_) all(m, true, d_.cell_panels);
  all(d_.projection, false, d_.word_panels);
}

// The row in `slot` reads `token` next: find its gates, or have them computed.
void Decoding::place(int64_t slot, int64_t token) {
  char* gates = table_ ? table_ + token * gates_bytes_ : scratch_ + slot * gates_bytes_;
  gates_x_[slot] = gates;
  if (table_ && known_[token]) return;
  if (table_) known_[token] = 1;
  const int64_t m = d_.missing++;
  missing_gates_[m] = gates;
  std::memcpy(static_cast<char*>(d_.input) + m * d_.input_stride * kernels_.element_size,
              embedding_ + token * token_bytes_, token_bytes_);
}

// Write a row's final state (before the buffers are swapped) and its score.
void Decoding::finish(int64_t slot) {
  const int64_t row = row_[slot], bytes = d_.hidden * kernels_.element_size;
  for (int64_t l = 0; l < d_.layers; ++l) {
    auto copy = [&](const Tensor& to, const void* from) {
      std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + (l * d_.capacity + row) * bytes,
                  static_cast<const char*>(from) + slot * d_.stride * kernels_.element_size, bytes);
    };
    copy(h_n, new_h_[l]);
    if (c_[l]) copy(c_n, c_[l]);
  }
  if (!a_.scores) return;
  if (kernels_.element_size == 8)
    log_probs.mutable_data_ptr<double>()[row] = log_prob_[slot];
  else
    log_probs.mutable_data_ptr<float>()[row] = static_cast<float>(log_prob_[slot]);
}

// The end of a step, by one thread: the tokens, and which rows go on.
void Decoding::choose() {
  const bool last = step_ + 1 == a_.max_length;
  int64_t kept = 0;
  d_.missing = 0;
  for (int64_t slot = 0; slot < d_.rows; ++slot) {
    double log_prob = 0;
    const int64_t token = kernels_.choose(d_, chunks_, slot, &log_prob), row = row_[slot];
    tokens_[row * a_.max_length + step_] = token;
    lengths_[row] = step_ + 1;
    log_prob_[slot] += log_prob;
    if (last || token == a_.eos) {
      finish(slot);
      continue;
    }
    if (kept != slot) {
      const int64_t bytes = d_.stride * kernels_.element_size;
      for (auto* states : {&new_h_, &c_})
        for (void* state : *states)
          if (state)
            std::memcpy(static_cast<char*>(state) + kept * bytes,
                        static_cast<char*>(state) + slot * bytes, bytes);
      row_[kept] = row, log_prob_[kept] = log_prob_[slot];
    }
    place(kept++, token);
  }
  d_.rows = kept;
  h_.swap(new_h_);
  d_.h = h_.data(), d_.new_h = new_h_.data();
  ++step_;
}

// The end of a phase, by one thread. A step has a phase for every layer and one for the projection.
bool Decoding::next() {
  if (stage_++ < d_.layers) return true;
  stage_ = 0;
  choose();
  return d_.rows > 0;
}

void Decoding::work(int64_t chunk) {
  const int64_t panels = stage_ < d_.layers ? d_.cell_panels : d_.word_panels;
  const int64_t p0 = panels * chunk / chunks_, p1 = panels * (chunk + 1) / chunks_;
  if (stage_ < d_.layers)
    kernels_.layer(d_, stage_, p0, p1);
  else
    kernels_.project(d_, chunk, p0, p1);
}

void Decoding::run() {
  if (d_.rows == 0 || a_.max_length == 0) {
    if (a_.scores) torch::stable::zero_(log_probs);
    return;
  }
  pack();
  for (int64_t slot = 0; slot < d_.rows; ++slot) {
    row_[slot] = slot;
    place(slot, start_[slot]);
  }
  int64_t products = d_.projection.depth * d_.vocabulary;
  for (int64_t l = 0; l < d_.layers; ++l)
    products += a_.weight_hh[l].numel() + (l > 0 ? a_.weight_ih[l].numel() : 0);
  const int64_t useful = products * d_.rows / ((d_.layers + 1) * kGrain);
  const int64_t threads = torch::stable::get_num_threads();
  chunks_ = useful < 1 ? 1 : useful < threads ? useful : threads;
  word_.resize(chunks_ * d_.capacity);
  d_.word = word_.data();
  d_.best = memory_.take(chunks_ * d_.capacity * kernels_.element_size);
  d_.sum = memory_.take(chunks_ * d_.capacity * kernels_.element_size);
  DecodeTeam team(chunks_);
  torch::stable::parallel_for(0, chunks_, 1, [&](int64_t home, int64_t end) {
    for (; home < end; ++home)
      team.work(home, [&](int64_t chunk) { work(chunk); }, [&] { return next(); });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy(Inputs a, Cell cell, int gates,
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
  Decoding decoding(a, cell, gates, states, wide ? Dtype::kFloat64 : Dtype::kFloat32);
  decoding.run();
  auto rounded = [&](const Tensor& t) {
    return dtype == compute ? t : torch::stable::to(t, dtype);
  };
  return {decoding.tokens, decoding.lengths, decoding.log_probs, rounded(decoding.h_n),
          rounded(decoding.c_n)};
}

template <typename C, Cell kCell>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> greedy_op(
    Tensor embedding, std::vector<Tensor> weight_ih, std::vector<Tensor> weight_hh,
    std::vector<Tensor> bias_ih, std::vector<Tensor> bias_hh, Tensor weight_out,
    std::optional<Tensor> bias_out, Tensor h_0, std::optional<Tensor> c_0, Tensor start,
    int64_t max_length, int64_t eos, int64_t pad, bool scores) {
  return greedy({embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out, h_0, c_0,
                 start, max_length, eos, pad, scores},
                kCell, C::kGates, C::kStates);
}

}  // namespace
}  // namespace cpu
}  // namespace seqkernels

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) {
  using namespace seqkernels;
  m.impl("lstm_greedy", TORCH_BOX((&cpu::greedy_op<Lstm, Cell::kLstm>)));
  m.impl("gru_greedy", TORCH_BOX((&cpu::greedy_op<Gru, Cell::kGru>)));
  m.impl("rnn_tanh_greedy", TORCH_BOX((&cpu::greedy_op<RnnTanh, Cell::kRnnTanh>)));
  m.impl("rnn_relu_greedy", TORCH_BOX((&cpu::greedy_op<RnnRelu, Cell::kRnnRelu>)));
}
