// What a step of the forward does: policies of persistent.h for pointwise cells and for
// gru_reset_before. h and c stay in registers as float32 for the whole sequence.
#pragma once
#include "persistent.h"

namespace seqkernels {

// What both forward policies share: elements, gates of the next step, biases and results.
template <typename C, typename scalar_t>
struct ForwardState {
  static constexpr bool kBackward = false, kStacks = true;
  static constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;

  Element element[kPerThread];
  float h[kPerThread], c[kPerThread];
  float gates_x[kPerThread][C::kGates];
  float saved[kPerThread][kSaved], out_h[kPerThread], out_c[kPerThread];
  bool alive[kPerThread], reset[kPerThread];
  const float* bias;

  // State, biases, and h_0 of the whole group as the input of the first product.
  template <typename M>
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    const Plan& p = a.plan;
    auto* biases = reinterpret_cast<float*>(shared + p.bias_offset);
    const int count = C::kGates * p.units;
    for (int i = b.thread; i < count; i += b.threads) {
      const int unit = b.first_unit + i % p.units;
      const int64_t at = int64_t(i / p.units) * p.hidden + unit;
      biases[i] = unit < p.hidden ? value_at<scalar_t>(a.bias_hh[b.part], at) : 0.0f;
      if (p.stacked != 0) {
        biases[count + i] = unit < p.hidden ? value_at<scalar_t>(a.bias_ih[b.part], at) : 0.0f;
      }
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
      element[i] = own_element(a, b, i);
      h[i] = c[i] = 0.0f;
      if (element[i].valid) {
        const int64_t at = int64_t(element[i].state_row) * p.hidden + element[i].hidden;
        h[i] = value_at<scalar_t>(a.h_0, at);
        c[i] = value_at<scalar_t>(a.c_0, at);
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
          gates_x[i][k] = bias[C::kGates * p.units + r] + summed(p, p.feed, shared, r, e.row);
        }
        continue;
      }
      const int64_t row = sequence_row(a, steps.part, t, e.batch_row) * C::kGates * p.hidden;
#pragma unroll
      for (int k = 0; k < C::kGates; ++k) {
        gates_x[i][k] = value_at<scalar_t>(a.gates_x, row + k * p.hidden + e.hidden);
      }
    }
  }

  SK_DEVICE void write(const SequenceArgs& a, const Steps& steps, int t, int i, bool zero) const {
    const Element& e = element[i];
    const int hidden = a.plan.hidden;
    const int64_t row = sequence_row(a, steps.part, t, e.batch_row);
    put<scalar_t>(a.output, row * hidden + e.hidden, zero ? 0.0f : out_h[i]);
    if constexpr (C::kStates == 2) {
      put<scalar_t>(a.c_sequence, row * hidden + e.hidden, zero ? 0.0f : out_c[i]);
    }
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      put<scalar_t>(a.saved, (row * C::kSaved + k) * hidden + e.hidden, zero ? 0.0f : saved[i][k]);
    }
  }

  SK_DEVICE void store_step(const SequenceArgs& a, const Steps& steps, int s) const {
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
      const int64_t at = int64_t(e.state_row) * a.plan.hidden + e.hidden;
      put<scalar_t>(a.h_n, at, h[i]);
      if constexpr (C::kStates == 2) put<scalar_t>(a.c_n, at, c[i]);
      if (a.offsets != nullptr) continue;
      for (int t = steps.count; t < steps.total; ++t) write(a, steps, t, i, true);
    }
  }
};

template <typename C, typename scalar_t>
struct Forward : ForwardState<C, scalar_t> {
  static constexpr int kPhases = 1;

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int, bool, const char* shared,
                         char* slice) {
    const Plan& p = a.plan;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = this->element[i];
      if (!e.valid) continue;
      if (this->alive[i]) {
        float gates_h[C::kGates];
#pragma unroll
        for (int k = 0; k < C::kGates; ++k) {
          const int r = k * p.units + e.unit;
          const float sum = summed(p, f, shared, r, e.row);
          gates_h[k] = this->bias[r] + (this->reset[i] ? 0.0f : sum);
        }
        if (this->reset[i]) this->h[i] = this->c[i] = 0.0f;
        C::forward(this->gates_x[i], gates_h, this->h[i], this->c[i], &this->out_h[i],
                   &this->out_c[i], this->saved[i]);
        this->h[i] = this->out_h[i];
        if constexpr (C::kStates == 2) this->c[i] = this->out_c[i];
      }
      stage<M>(p, slice, 0, e, this->h[i]);
    }
  }
  SK_DEVICE void store(const SequenceArgs& a, const Steps& steps, int, int s) const {
    this->store_step(a, steps, s);
  }
};

// Phase 0 turns the product of h into r, z and r * h; phase 1 the product of r * h into n and h.
template <typename scalar_t>
struct ForwardResetBefore : ForwardState<GruResetBefore, scalar_t> {
  using C = GruResetBefore;
  static constexpr int kPhases = 2;

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int phase, bool, const char* shared,
                         char* slice) {
    const Plan& p = a.plan;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = this->element[i];
      if (!e.valid) continue;
      if (phase == 0) {
        float reset_h = 0.0f;
        if (this->alive[i]) {
          if (this->reset[i]) this->h[i] = 0.0f;
          float gates_h[2];
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const int r = k * p.units + e.unit;
            const float sum = summed(p, f, shared, r, e.row);
            gates_h[k] = this->bias[r] + (this->reset[i] ? 0.0f : sum);
          }
          reset_h = C::reset(this->gates_x[i], gates_h, this->h[i], this->saved[i]);
        }
        stage<M>(p, slice, 0, e, reset_h);
      } else {
        if (this->alive[i]) {
          const float gates_hn =
              this->bias[2 * p.units + e.unit] + summed(p, f, shared, e.unit, e.row);
          this->h[i] = C::update(this->gates_x[i][2], gates_hn, this->h[i], this->saved[i]);
          this->out_h[i] = this->h[i];
        }
        stage<M>(p, slice, 0, e, this->h[i]);
      }
    }
  }
  SK_DEVICE void store(const SequenceArgs& a, const Steps& steps, int phase, int s) const {
    if (phase == 1) this->store_step(a, steps, s);
  }
};

template <typename M>
int launch_forward(Cell cell, const SequenceArgs& a, void* stream) {
  using S = typename M::scalar;
  switch (cell) {
    case Cell::kLstm:
      return launch_policy<Forward<Lstm, S>, M>(a, stream);
    case Cell::kGru:
      return launch_policy<Forward<Gru, S>, M>(a, stream);
    case Cell::kGruResetBefore:
      return launch_policy<ForwardResetBefore<S>, M>(a, stream);
    case Cell::kRnnTanh:
      return launch_policy<Forward<RnnTanh, S>, M>(a, stream);
    case Cell::kRnnRelu:
      return launch_policy<Forward<RnnRelu, S>, M>(a, stream);
  }
  return 1;  // cudaErrorInvalidValue
}

}  // namespace seqkernels
