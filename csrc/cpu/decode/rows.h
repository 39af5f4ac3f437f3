// Greedy decoding of some rows of a call, and what all rows of a call share: the packed weights.
//
// The gates that the embedding gives to layer 0 depend on the token alone: they are computed when a
// token first appears and kept, unless the table would be large. Rows that have ended leave their
// slot to the last running row.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <memory>
#include <vector>

#include "cpu/aligned_memory.h"
#include "cpu/decode/decode.h"
#include "cpu/decode/group.h"
#include "greedy_ops.h"

namespace seqkernels {
namespace cpu {

// Above this many rows packing the weights pays within one call: bench/results, suite decode.
constexpr int64_t kUnpackedRows = 2;
// The tables of gates by token are kept while all together are smaller than this.
constexpr int64_t kTableBytes = int64_t(64) << 20;
// Multiplications of a phase that are worth a second thread.
constexpr int64_t kGrain = int64_t(1) << 15;

// The weights as the kernels read them, and the sizes that follow from them.
class DecodeWeights {
 public:
  DecodeWeights(const GreedyInputs& a, Cell cell, Dtype dtype)
      : kernels(decode_kernels(cell, dtype)) {
    const bool packed = a.start.size(0) > kUnpackedRows;
    sizes.layers = a.weight_hh.size(), sizes.hidden = a.weight_hh[0].size(1);
    sizes.vocabulary = a.weight_out.size(0);
    sizes.cell_panels = (sizes.hidden + kernels.units - 1) / kernels.units;
    sizes.word_panels = (sizes.vocabulary + kernels.words - 1) / kernels.words;
    sizes.stride = sizes.cell_panels * kernels.units;
    const int64_t lanes = kernels.lanes;
    sizes.input_stride = (a.embedding.size(1) + lanes - 1) / lanes * lanes;
    sizes.scores = a.scores;
    const int64_t cell_width = sizes.stride * facts(cell).gates;
    gates_bytes = cell_width * kernels.element_size;
    for (int64_t l = 0; l < sizes.layers; ++l) {
      const Tensor* bias_ih = a.bias_ih.empty() ? nullptr : &a.bias_ih[l];
      const Tensor* bias_hh = a.bias_hh.empty() ? nullptr : &a.bias_hh[l];
      weight_ih_.push_back(matrix(a.weight_ih[l], bias_ih, cell_width, packed));
      weight_hh_.push_back(matrix(a.weight_hh[l], bias_hh, cell_width, packed));
    }
    sizes.weight_ih = weight_ih_.data(), sizes.weight_hh = weight_hh_.data();
    sizes.projection = matrix(a.weight_out, a.bias_out ? &*a.bias_out : nullptr,
                              sizes.word_panels * kernels.words, packed);
    products = sizes.projection.depth * sizes.vocabulary;
    for (int64_t l = 0; l < sizes.layers; ++l)
      products += a.weight_hh[l].numel() + (l > 0 ? a.weight_ih[l].numel() : 0);
    pack();
  }

  const DecodeKernels& kernels;
  Decode sizes = {};     // without the parts that belong to rows
  int64_t gates_bytes;   // of a row of gates
  int64_t products = 0;  // multiplications of a step for one row

 private:
  DecodeMatrix matrix(const Tensor& weight, const Tensor* bias, int64_t width, bool pack) {
    DecodeMatrix m;
    m.depth = weight.size(1);
    m.weight = weight.const_data_ptr();
    m.bias = bias ? bias->const_data_ptr() : nullptr;
    m.packed = pack ? memory_.take(width * m.depth * kernels.element_size) : nullptr;
    m.packed_bias = memory_.take(width * kernels.element_size);
    return m;
  }

  // All panels of all matrices, by torch's threads.
  void pack() {
    auto all = [&](const DecodeMatrix& m, bool cell, int64_t panels) {
      const int64_t grain = m.packed ? 1 + 32768 / (m.depth * kernels.words) : panels;
      torch::stable::parallel_for(0, panels, grain, [&](int64_t p0, int64_t p1) {
        cell ? kernels.pack_cell(m, sizes.hidden, p0, p1)
             : kernels.pack_projection(m, sizes.vocabulary, p0, p1);
      });
    };
    for (const DecodeMatrix& m : weight_ih_) all(m, true, sizes.cell_panels);
    for (const DecodeMatrix& m : weight_hh_) all(m, true, sizes.cell_panels);
    all(sizes.projection, false, sizes.word_panels);
  }

  AlignedMemory memory_;
  std::vector<DecodeMatrix> weight_ih_, weight_hh_;
};

// What a call writes, each for all its rows; the states in the compute type.
struct GreedyResults {
  int64_t *tokens, *lengths;
  char *log_probs, *h_n, *c_n;  // c_n is null where the cell has none
};

// Rows [first, first + count) of a call, from the start to their ends, in phases that `shares`
// threads share.
class DecodeRows {
 public:
  DecodeRows(const GreedyInputs& a, const DecodeWeights& weights, const GreedyResults& results,
             int64_t first, int64_t count, int64_t shares, int64_t table_bytes);

  // Take part in every phase, preferring share `home`; returns when all rows have ended.
  void work(int64_t home) {
    group_.work(home, [&](int64_t share) { work_share(share); }, [&] { return next(); });
  }

 private:
  void place(int64_t slot, int64_t token);
  void finish(int64_t slot);
  bool next();
  void choose();
  void work_share(int64_t share);

  const GreedyInputs& a_;
  const DecodeKernels& kernels_;
  const GreedyResults results_;
  AlignedMemory memory_;
  Decode d_;
  std::vector<void*> h_, new_h_, c_, missing_gates_;
  std::vector<const void*> gates_x_;
  std::vector<int64_t> row_, word_;
  std::vector<double> log_prob_;
  std::vector<char> known_;  // tokens whose gates are in the table
  char *table_ = nullptr, *scratch_ = nullptr;
  const char* embedding_;
  const int64_t gates_bytes_, token_bytes_, shares_;
  int64_t step_ = 0, stage_ = 0;
  int64_t others_ = 0;  // states beside h
  DecodeGroup group_;
};

inline DecodeRows::DecodeRows(const GreedyInputs& a, const DecodeWeights& weights,
                              const GreedyResults& results, int64_t first, int64_t count,
                              int64_t shares, int64_t table_bytes)
    : a_(a),
      kernels_(weights.kernels),
      results_(results),
      d_(weights.sizes),
      embedding_(static_cast<const char*>(a.embedding.const_data_ptr())),
      gates_bytes_(weights.gates_bytes),
      token_bytes_(a.embedding.size(1) * weights.kernels.element_size),
      shares_(shares),
      group_(shares) {
  const int64_t bytes = kernels_.element_size, rows = a.start.size(0);
  if (a.c_0) others_ = a.c_0->size(2) / d_.hidden;
  d_.capacity = d_.rows = count;
  const int64_t state_bytes = count * d_.stride * bytes;
  for (int64_t l = 0; l < d_.layers; ++l) {
    h_.push_back(memory_.zeros(state_bytes));
    new_h_.push_back(memory_.zeros(state_bytes));
    c_.push_back(memory_.zeros(state_bytes * others_));
    const auto copy = [&](void* to, const Tensor& state, int64_t states) {
      const char* from = static_cast<const char*>(state.const_data_ptr());
      for (int64_t k = 0; k < count * states; ++k)
        std::memcpy(static_cast<char*>(to) + k * d_.stride * bytes,
                    from + ((l * rows + first) * states + k) * d_.hidden * bytes,
                    d_.hidden * bytes);
    };
    copy(h_[l], a.h_0, 1);
    if (a.c_0) copy(c_[l], *a.c_0, others_);
  }
  d_.h = h_.data(), d_.new_h = new_h_.data(), d_.c = c_.data();

  gates_x_.resize(count), missing_gates_.resize(count);
  d_.gates_x = gates_x_.data(), d_.missing_gates = missing_gates_.data();
  d_.input = memory_.zeros(count * d_.input_stride * bytes);
  if (a.embedding.size(0) * gates_bytes_ <= table_bytes) {
    table_ = static_cast<char*>(memory_.take(a.embedding.size(0) * gates_bytes_));
    known_.assign(a.embedding.size(0), 0);
  } else {
    scratch_ = static_cast<char*>(memory_.take(count * gates_bytes_));
  }
  word_.resize(shares * count);
  d_.word = word_.data();
  d_.best = memory_.take(shares * count * bytes);
  d_.sum = memory_.take(shares * count * bytes);
  row_.resize(count), log_prob_.assign(count, 0.0);
  for (int64_t slot = 0; slot < count; ++slot) {
    row_[slot] = first + slot;
    place(slot, a.start.const_data_ptr<int64_t>()[first + slot]);
  }
}

// The row in `slot` reads `token` next: find its gates, or have them computed.
inline void DecodeRows::place(int64_t slot, int64_t token) {
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
inline void DecodeRows::finish(int64_t slot) {
  const int64_t row = row_[slot], bytes = d_.hidden * kernels_.element_size;
  for (int64_t l = 0; l < d_.layers; ++l) {
    const auto copy = [&](char* to, const void* from, int64_t states) {
      for (int64_t s = 0; s < states; ++s)
        std::memcpy(to + ((l * a_.start.size(0) + row) * states + s) * bytes,
                    static_cast<const char*>(from) +
                        (slot * states + s) * d_.stride * kernels_.element_size,
                    bytes);
    };
    copy(results_.h_n, new_h_[l], 1);
    copy(results_.c_n, c_[l], others_);
  }
  if (!a_.scores) return;
  if (kernels_.element_size == 8)
    reinterpret_cast<double*>(results_.log_probs)[row] = log_prob_[slot];
  else
    reinterpret_cast<float*>(results_.log_probs)[row] = static_cast<float>(log_prob_[slot]);
}

// The end of a step, by one thread: the tokens, and which rows go on.
inline void DecodeRows::choose() {
  const bool last = step_ + 1 == a_.max_length;
  int64_t kept = 0;
  d_.missing = 0;
  for (int64_t slot = 0; slot < d_.rows; ++slot) {
    double log_prob = 0;
    const int64_t token = kernels_.choose(d_, shares_, slot, &log_prob), row = row_[slot];
    results_.tokens[row * a_.max_length + step_] = token;
    results_.lengths[row] = step_ + 1;
    log_prob_[slot] += log_prob;
    if (last || token == a_.eos) {
      finish(slot);
      continue;
    }
    if (kept != slot) {
      const int64_t bytes = d_.stride * kernels_.element_size;
      const auto move = [&](const std::vector<void*>& states, int64_t size) {
        for (void* state : states)
          std::memcpy(static_cast<char*>(state) + kept * size,
                      static_cast<char*>(state) + slot * size, size);
      };
      move(new_h_, bytes);
      move(c_, bytes * others_);
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
inline bool DecodeRows::next() {
  if (stage_++ < d_.layers) return true;
  stage_ = 0;
  choose();
  return d_.rows > 0;
}

inline void DecodeRows::work_share(int64_t share) {
  const int64_t panels = stage_ < d_.layers ? d_.cell_panels : d_.word_panels;
  const int64_t p0 = panels * share / shares_, p1 = panels * (share + 1) / shares_;
  if (stage_ < d_.layers)
    kernels_.layer(d_, stage_, p0, p1);
  else
    kernels_.project(d_, share, p0, p1);
}

}  // namespace cpu
}  // namespace seqkernels
