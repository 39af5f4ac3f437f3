// What a step of the backward does: policies of persistent.h for pointwise cells and for
// gru_reset_before. The gradients of h and c stay in registers as float32 for the whole sequence.
#pragma once
#include "persistent.h"

namespace seqkernels {

// What both backward policies share. Steps are taken against the direction of the forward. Of
// stacked layers only the last is given gradients of its outputs; the others are fed theirs.
template <typename C, typename scalar_t, bool kStacked>
struct BackwardState {
  static constexpr bool kBackward = true, kStacks = kStacked;
  static constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;
  static constexpr bool kIsRnn = C::kGates == 1, kIsLstm = C::kStates == 2;

  Element element[kPerThread];
  float grad_h[kPerThread], grad_c[kPerThread];
  // Of the step at hand: values of the forward, incoming gradients, and results.
  float saved[kPerThread][kSaved], h[kPerThread], c[kPerThread], state[kPerThread];
  float from_h[kPerThread], from_c[kPerThread];
  float gates[kPerThread][C::kGates], gates_hn[kPerThread];
  bool alive[kPerThread], reset[kPerThread];
  bool dropped[kPerThread];  // the step before in this order was a reset: nothing comes back

  template <typename M>
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char*) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      element[i] = own_element(a, b, i);
      grad_h[i] = grad_c[i] = 0.0f;
      dropped[i] = false;
      if (element[i].valid) {
        const int64_t at = int64_t(element[i].state_row) * a.plan.hidden + element[i].hidden;
        grad_h[i] = value_at<scalar_t>(a.grad_h_n, at);
        if constexpr (kIsLstm) grad_c[i] = value_at<scalar_t>(a.grad_c_n, at);
      }
    }
  }

  SK_DEVICE static int time(const SequenceArgs& a, const Steps& steps, int s) {
    return reversed(a, steps.part) ? s : steps.count - 1 - s;
  }

  SK_DEVICE void fetch(const SequenceArgs& a, const Steps& steps, int s, const char* shared) {
    const int t = time(a, steps, s), hidden = a.plan.hidden;
    const bool fed = kStacked && steps.part + 1 < a.plan.parts;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = element[i];
      alive[i] = e.valid && t < e.length;
      reset[i] = false;
      if (!alive[i]) continue;
      if (a.reset != nullptr) {
        reset[i] = a.reset[steps.part * a.reset_stride + int64_t(t) * a.plan.batch + e.batch_row];
      }
      const int64_t row = sequence_row(a, steps.part, t, e.batch_row), at = row * hidden + e.hidden;
      const int64_t given = kStacked ? sequence_row(a, 0, t, e.batch_row) * hidden + e.hidden : at;
      from_h[i] = fed ? summed(a.plan, a.plan.feed, shared, e.unit, e.row)
                      : value_at<scalar_t>(a.grad_output, given);
      // The state before this step: of the step before it, or the initial one.
      const int before = reversed(a, steps.part) ? t + 1 : t - 1;
      const bool inside = before >= 0 && before < e.length;
      const int64_t before_row =
          inside ? sequence_row(a, steps.part, before, e.batch_row) : int64_t(e.state_row);
      const int64_t before_at = before_row * hidden + e.hidden;
      if constexpr (kIsLstm) {
        from_c[i] = fed ? 0.0f : value_at<scalar_t>(a.grad_c_sequence, given);
        state[i] = value_at<scalar_t>(a.c_sequence, at);
        c[i] = reset[i] ? 0.0f : value_at<scalar_t>(inside ? a.c_sequence : a.c_0, before_at);
      } else if constexpr (kIsRnn) {
        state[i] = value_at<scalar_t>(a.output, at);
      } else {
        h[i] = reset[i] ? 0.0f : value_at<scalar_t>(inside ? a.output : a.h_0, before_at);
      }
#pragma unroll
      for (int k = 0; k < C::kSaved; ++k) {
        saved[i][k] = value_at<scalar_t>(a.saved, (row * C::kSaved + k) * hidden + e.hidden);
      }
    }
  }

  // The gradient of the state that came back through the product of the step before.
  SK_DEVICE float returned(const Plan& p, const Phase& f, const char* shared, int i) const {
    return dropped[i] ? 0.0f : summed(p, f, shared, element[i].unit, element[i].row);
  }

  SK_DEVICE void write(const SequenceArgs& a, const Steps& steps, int t, int i, bool zero) const {
    const Element& e = element[i];
    const int64_t row = sequence_row(a, steps.part, t, e.batch_row);
#pragma unroll
    for (int k = 0; k < C::kGates; ++k) {
      put<scalar_t>(a.grad_gates_x, (row * C::kGates + k) * a.plan.hidden + e.hidden,
                    zero ? 0.0f : gates[i][k]);
    }
    if constexpr (C::kHidden > 0) {
      put<scalar_t>(a.grad_gates_hn, row * a.plan.hidden + e.hidden, zero ? 0.0f : gates_hn[i]);
    }
  }

  SK_DEVICE void store_step(const SequenceArgs& a, const Steps& steps, int s) const {
    const int t = time(a, steps, s);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!element[i].valid || (!alive[i] && a.offsets != nullptr)) continue;
      write(a, steps, t, i, !alive[i]);
    }
  }

  SK_DEVICE void finish(const SequenceArgs& a, const Steps& steps, const char* shared) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = element[i];
      if (!e.valid) continue;
      const int64_t at = int64_t(e.state_row) * a.plan.hidden + e.hidden;
      const float last = steps.count > 0 ? returned(a.plan, a.plan.phase[0], shared, i) : 0.0f;
      put<scalar_t>(a.grad_h_0, at, grad_h[i] + last);
      if constexpr (kIsLstm) put<scalar_t>(a.grad_c_0, at, grad_c[i]);
      if (a.offsets != nullptr) continue;
      for (int t = steps.count; t < steps.total; ++t) write(a, steps, t, i, true);
    }
  }
};

template <typename C, typename scalar_t, bool kStacked = false>
struct Backward : BackwardState<C, scalar_t, kStacked> {
  static constexpr int kPhases = 1;

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int, bool first, const char* shared,
                         char* slice) {
    const Plan& p = a.plan;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = this->element[i];
      if (!e.valid) continue;
      float grad_h = this->grad_h[i] + (first ? 0.0f : this->returned(p, f, shared, i));
      float gates[C::kGates] = {}, gates_hn = 0.0f;
      if (this->alive[i]) {
        float previous_h, previous_c = 0.0f;
        C::backward(this->saved[i], this->h[i], this->c[i], this->state[i], this->state[i],
                    grad_h + this->from_h[i], this->grad_c[i] + this->from_c[i], gates, &gates_hn,
                    &previous_h, &previous_c);
        grad_h = this->reset[i] ? 0.0f : previous_h;
        if constexpr (C::kStates == 2) this->grad_c[i] = this->reset[i] ? 0.0f : previous_c;
      }
      this->grad_h[i] = grad_h;
      this->dropped[i] = this->reset[i];
      this->gates_hn[i] = gates_hn;
#pragma unroll
      for (int k = 0; k < C::kGates; ++k) {
        this->gates[i][k] = gates[k];
        const bool hidden_n = C::kHidden > 0 && k + 1 == C::kGates;
        stage<M>(p, slice, k, e, hidden_n ? gates_hn : gates[k]);
      }
    }
  }
  SK_DEVICE void store(const SequenceArgs& a, const Steps& steps, int, int s) const {
    this->store_step(a, steps, s);
  }
};

// Phase 0 takes the gradient of h to the z and n gates and publishes n's; phase 1 takes the
// gradient of r * h, the product of these, to the r gate and publishes r's and z's.
template <typename scalar_t, bool kStacked = false>
struct BackwardResetBefore : BackwardState<GruResetBefore, scalar_t, kStacked> {
  using C = GruResetBefore;
  static constexpr int kPhases = 2;

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int phase, bool first,
                         const char* shared, char* slice) {
    const Plan& p = a.plan;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = this->element[i];
      if (!e.valid) continue;
      float* gates = this->gates[i];
      if (phase == 0) {
        float grad_h = this->grad_h[i] + (first ? 0.0f : this->returned(p, f, shared, i));
        gates[0] = gates[1] = gates[2] = 0.0f;
        if (this->alive[i]) {
          float previous;
          C::update_backward(this->saved[i], this->h[i], grad_h + this->from_h[i], gates,
                             &previous);
          grad_h = previous;
        }
        this->grad_h[i] = grad_h;
        stage<M>(p, slice, 0, e, gates[2]);
      } else {
        if (this->alive[i]) {
          C::reset_backward(this->saved[i], this->h[i], summed(p, f, shared, e.unit, e.row), gates,
                            &this->grad_h[i]);
          if (this->reset[i]) this->grad_h[i] = 0.0f;
        }
        this->dropped[i] = this->reset[i];
        stage<M>(p, slice, 0, e, gates[0]);
        stage<M>(p, slice, 1, e, gates[1]);
      }
    }
  }
  SK_DEVICE void store(const SequenceArgs& a, const Steps& steps, int phase, int s) const {
    if (phase == 1) this->store_step(a, steps, s);
  }
};

template <typename M, bool kStacked>
int launch_backward(Cell cell, const SequenceArgs& a, void* stream) {
  using S = typename M::scalar;
  switch (cell) {
    case Cell::kLstm:
      return launch_policy<Backward<Lstm, S, kStacked>, M>(a, stream);
    case Cell::kGru:
      return launch_policy<Backward<Gru, S, kStacked>, M>(a, stream);
    case Cell::kGruResetBefore:
      return launch_policy<BackwardResetBefore<S, kStacked>, M>(a, stream);
    case Cell::kRnnTanh:
      return launch_policy<Backward<RnnTanh, S, kStacked>, M>(a, stream);
    case Cell::kRnnRelu:
      return launch_policy<Backward<RnnRelu, S, kStacked>, M>(a, stream);
  }
  return 1;  // cudaErrorInvalidValue
}

}  // namespace seqkernels
