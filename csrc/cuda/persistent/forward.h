// What a step of the forward does: the policy of persistent.h, with a phase for each stage of the
// cell. The state stays in registers as float32 for the whole sequence.
#pragma once
#include "cuda/persistent/persistent.h"

namespace seqkernels {

template <typename C, typename scalar_t>
struct Forward {
  static constexpr bool kBackward = false, kStacks = true;
  static constexpr int kPhases = kStageCount<C>;

  Element element[kPerThread];
  // `state` is that of the sequence; the rest belongs to the step at hand.
  Step<C, float> step[kPerThread];
  bool alive[kPerThread], reset[kPerThread];
  const float* bias;  // recurrent biases, parameters; of stacked layers then biases of the input

  // State, biases, and h_0 of the whole group as the input of the first product.
  template <typename M>
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    const Plan& p = a.plan;
    constexpr int kRows = C::kGates + C::kParameters;
    auto* biases = reinterpret_cast<float*>(shared + p.bias_offset);
    load_vectors<scalar_t>(a, b, biases, a.bias_hh[b.part], 0, kRows);
    if (p.stacked != 0) {
      load_vectors<scalar_t>(a, b, biases + kRows * p.units, a.bias_ih[b.part], 0, C::kGates);
    }
    bias = biases;
    for (int i = b.thread; i < b.rows * p.hidden; i += b.threads) {
      const int row = i / p.hidden, k = i % p.hidden;
      const int64_t state_row = int64_t(b.part) * p.batch + batch_row(a, b, row);
      const float x = value_at<scalar_t>(a.h_0, state_row * p.hidden + k);
      char* chunk = shared + (k / kChunk<M> * p.rows_padded + row) * kChunkBytes;
      reinterpret_cast<typename M::element*>(chunk)[k % kChunk<M>] = to_element<M>(x);
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element e = element[i] = own_element(a, b, i);
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        const int64_t at = state_at<C>(e.state_row, j, p.hidden, e.hidden);
        step[i].state[j] = e.valid ? value_at<scalar_t>(j == 0 ? a.h_0 : a.c_0, at) : 0.0f;
      }
    }
  }

  SK_DEVICE static int time(const SequenceArgs& a, const Steps& steps, int s) {
    return reversed(a, steps.part) ? steps.count - 1 - s : s;
  }

  // Starts the loads of step s; they arrive while the block waits for the others. A layer above the
  // first finds its gates in the partial sums of its input product.
  SK_DEVICE void fetch(const SequenceArgs& a, const Steps& steps, int s, const char* shared) {
    const Plan& p = a.plan;
    const bool inside = p.stacked != 0 && steps.part > 0;
    const int t = time(a, steps, s);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = element[i];
      alive[i] = e.valid && t < e.length;
      reset[i] = false;
      if (!alive[i]) continue;
      if (a.reset != nullptr) {
        reset[i] = a.reset[steps.part * a.reset_stride + int64_t(t) * a.plan.batch + e.batch_row];
      }
      if (inside) {
#pragma unroll
        for (int k = 0; k < C::kGates; ++k) {
          const int r = k * p.units + e.unit;
          step[i].gates_x[k] = bias[(C::kGates + C::kParameters) * p.units + r] +
                               summed(p, p.feed, shared, r, e.row);
        }
        continue;
      }
      const int64_t row = sequence_row(a, steps.part, t, e.batch_row) * C::kGates * p.hidden;
#pragma unroll
      for (int k = 0; k < C::kGates; ++k) {
        step[i].gates_x[k] = value_at<scalar_t>(a.gates_x, row + k * p.hidden + e.hidden);
      }
    }
  }

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int phase, bool, const char* shared,
                         char* values) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!element[i].valid) continue;
      if (phase == 0) {
        run<M, 0>(a.plan, f, i, shared, values);
      } else {
        run<M, kPhases - 1>(a.plan, f, i, shared, values);
      }
    }
  }

  SK_DEVICE void store(const SequenceArgs& a, const Steps& steps, int phase, int s) const {
    if (phase + 1 < kPhases) return;
    const int t = time(a, steps, s);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      // A packed row that has ended has no place.
      if (!element[i].valid || (!alive[i] && a.offsets != nullptr)) continue;
      write(a, steps, t, i, !alive[i]);
    }
  }

  SK_DEVICE void finish(const SequenceArgs& a, const Steps& steps, const char*) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = element[i];
      if (!e.valid) continue;
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        put<scalar_t>(j == 0 ? a.h_n : a.c_n, state_at<C>(e.state_row, j, a.plan.hidden, e.hidden),
                      step[i].state[j]);
      }
      if (a.offsets != nullptr) continue;
      for (int t = steps.count; t < steps.total; ++t) write(a, steps, t, i, true);
    }
  }

 private:
  // A stage: from the partial sums of its product to what the next product reads.
  template <typename M, int kStage>
  SK_DEVICE void run(const Plan& p, const Phase& f, int i, const char* shared, char* values) {
    constexpr Stage kOwn = C::kStages[kStage];
    constexpr bool kLast = kStage + 1 == kPhases;
    const Element& e = element[i];
    Step<C, float>& v = step[i];
    if (!kLast) v.operand = 0.0f;
    if (alive[i]) {
      // Of a zero state the product is zero.
      const bool zero = kStage == 0 && reset[i];
#pragma unroll
      for (int k = 0; k < kOwn.gates; ++k) {
        const float sum = summed(p, f, shared, k * p.units + e.unit, e.row);
        const int gate = kOwn.first_gate + k;
        v.gates_h[gate] = bias[gate * p.units + e.unit] + (zero ? 0.0f : sum);
      }
      if (zero) {
#pragma unroll
        for (int j = 0; j < C::kStates; ++j) v.state[j] = 0.0f;
      }
#pragma unroll
      for (int k = 0; k < C::kParameters; ++k) {
        v.parameter[k] = bias[(C::kGates + k) * p.units + e.unit];
      }
      C::template forward<kStage>(v);
      if (kLast) {
#pragma unroll
        for (int j = 0; j < C::kStates; ++j) v.state[j] = v.new_state[j];
      }
    }
    stage<M>(p, values, 0, e, kLast ? v.state[0] : v.operand);
  }

  SK_DEVICE void write(const SequenceArgs& a, const Steps& steps, int t, int i, bool zero) const {
    const Element& e = element[i];
    const int hidden = a.plan.hidden;
    const int64_t row = sequence_row(a, steps.part, t, e.batch_row);
#pragma unroll
    for (int j = 0; j < C::kStates; ++j) {
      put<scalar_t>(j == 0 ? a.output : a.c_sequence, state_at<C>(row, j, hidden, e.hidden),
                    zero ? 0.0f : step[i].new_state[j]);
    }
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      put<scalar_t>(a.saved, (row * C::kSaved + k) * hidden + e.hidden,
                    zero ? 0.0f : step[i].saved[k]);
    }
  }
};

}  // namespace seqkernels
