// What a step of the backward does: the policy of persistent.h, with a phase for each stage of the
// cell, from the last to the first. The gradients of the state stay in registers as float32 for the
// whole sequence.
#pragma once
#include "cuda/persistent/persistent.h"

namespace seqkernels {

// Steps are taken against the direction of the forward. Of stacked layers only the last is given
// gradients of its outputs; the others are fed theirs.
template <typename C, typename scalar_t, bool kStacked = false>
struct Backward {
  static constexpr bool kBackward = true, kStacks = kStacked;
  static constexpr int kPhases = kStageCount<C>;

  Element element[kPerThread];
  // `grad_state` is that of the sequence; the rest belongs to the step at hand.
  StepGrad<C, float> step[kPerThread];
  bool alive[kPerThread], reset[kPerThread];
  bool dropped[kPerThread];  // the step before in this order was a reset: nothing comes back
  const float* parameters;

  template <typename M>
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    if constexpr (C::kParameters > 0) {
      auto* room = reinterpret_cast<float*>(shared + a.plan.bias_offset);
      load_vectors<scalar_t>(a, b, room, a.bias_hh[b.part], C::kGates, C::kParameters);
      parameters = room;
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element e = element[i] = own_element(a, b, i);
      dropped[i] = false;
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        const int64_t at = state_at<C>(e.state_row, j, a.plan.hidden, e.hidden);
        const void* grad = j == 0 ? a.grad_h_n : a.grad_c_n;
        step[i].grad_state[j] = e.valid ? value_at<scalar_t>(grad, at) : 0.0f;
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
      StepGrad<C, float>& v = step[i];
      alive[i] = e.valid && t < e.length;
      reset[i] = false;
      if (!alive[i]) continue;
      if (a.reset != nullptr) {
        reset[i] = a.reset[steps.part * a.reset_stride + int64_t(t) * a.plan.batch + e.batch_row];
      }
      const int64_t row = sequence_row(a, steps.part, t, e.batch_row);
      const int64_t given = kStacked ? sequence_row(a, 0, t, e.batch_row) : row;
      v.grad_new_state[0] =
          fed ? summed(a.plan, a.plan.feed, shared, e.unit, e.row)
              : value_at<scalar_t>(a.grad_output, state_at<C>(given, 0, hidden, e.hidden));
#pragma unroll
      for (int j = 1; j < C::kStates; ++j) {
        const int64_t at = state_at<C>(given, j, hidden, e.hidden);
        v.grad_new_state[j] = fed ? 0.0f : value_at<scalar_t>(a.grad_c_sequence, at);
      }
      // The state before this step: of the step before it, or the initial one.
      const int before = reversed(a, steps.part) ? t + 1 : t - 1;
      const bool inside = before >= 0 && before < e.length;
      const int64_t before_row =
          inside ? sequence_row(a, steps.part, before, e.batch_row) : int64_t(e.state_row);
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        const void* sequence = j == 0 ? a.output : a.c_sequence;
        if (in_set(C::kReadsNewState, j)) {
          v.new_state[j] = value_at<scalar_t>(sequence, state_at<C>(row, j, hidden, e.hidden));
        }
        if (in_set(C::kReadsState, j)) {
          const void* from = inside ? sequence : j == 0 ? a.h_0 : a.c_0;
          const int64_t at = state_at<C>(before_row, j, hidden, e.hidden);
          v.state[j] = reset[i] ? 0.0f : value_at<scalar_t>(from, at);
        }
      }
#pragma unroll
      for (int k = 0; k < C::kSaved; ++k) {
        v.saved[k] = value_at<scalar_t>(a.saved, (row * C::kSaved + k) * hidden + e.hidden);
      }
    }
  }

  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int phase, bool first,
                         const char* shared, char* values) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!element[i].valid) continue;
      if (phase == 0) {
        run<M, kPhases - 1>(a.plan, f, first, i, shared, values);
      } else {
        run<M, 0>(a.plan, f, first, i, shared, values);
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

  SK_DEVICE void finish(const SequenceArgs& a, const Steps& steps, const char* shared) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = element[i];
      if (!e.valid) continue;
      const float last = steps.count > 0 ? returned(a.plan, a.plan.phase[0], shared, i) : 0.0f;
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        put<scalar_t>(j == 0 ? a.grad_h_0 : a.grad_c_0,
                      state_at<C>(e.state_row, j, a.plan.hidden, e.hidden),
                      j == 0 ? step[i].grad_state[0] + last : step[i].grad_state[j]);
      }
      if (a.offsets != nullptr) continue;
      for (int t = steps.count; t < steps.total; ++t) write(a, steps, t, i, true);
    }
  }

 private:
  // The gradient of h that came back through the product of the step before.
  SK_DEVICE float returned(const Plan& p, const Phase& f, const char* shared, int i) const {
    return dropped[i] ? 0.0f : summed(p, f, shared, element[i].unit, element[i].row);
  }

  // A stage: from what comes back through the product after it to the gate gradients that the next
  // product reads.
  template <typename M, int kStage>
  SK_DEVICE void run(const Plan& p, const Phase& f, bool first, int i, const char* shared,
                     char* values) {
    constexpr Stage kOwn = C::kStages[kStage];
    constexpr bool kBegins = kStage + 1 == kPhases, kEnds = kStage == 0;
    const Element& e = element[i];
    StepGrad<C, float>& v = step[i];
    if (kBegins) v.grad_state[0] += first ? 0.0f : returned(p, f, shared, i);
    // Of an ended row; otherwise the step before would have to be kept for it.
#pragma unroll
    for (int k = 0; k < C::kGates; ++k) {
      if (in_set(kOwn.grads, k)) v.grad_gates_x[k] = v.grad_gates_h[k] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < C::kParameters; ++k) {
      if (in_set(kOwn.parameters, k)) v.grad_parameter[k] = 0.0f;
    }
    if (alive[i]) {
      if (kBegins) {
#pragma unroll
        for (int j = 0; j < C::kStates; ++j) v.grad_new_state[j] += v.grad_state[j];
      } else {
        v.grad_operand = summed(p, f, shared, e.unit, e.row);
      }
#pragma unroll
      for (int k = 0; k < C::kParameters; ++k) v.parameter[k] = parameters[k * p.units + e.unit];
      C::template backward<kStage>(v);
      if (kEnds && reset[i]) {
#pragma unroll
        for (int j = 0; j < C::kStates; ++j) v.grad_state[j] = 0.0f;
      }
    }
    if (kEnds) dropped[i] = reset[i];
#pragma unroll
    for (int k = 0; k < kOwn.gates; ++k) {
      stage<M>(p, values, k, e, v.through(kOwn.first_gate + k));
    }
  }

  SK_DEVICE void write(const SequenceArgs& a, const Steps& steps, int t, int i, bool zero) const {
    const Element& e = element[i];
    const int hidden = a.plan.hidden;
    const int64_t row = sequence_row(a, steps.part, t, e.batch_row);
    const auto put_separate = [&](int column, float x) {
      put<scalar_t>(a.grad_separate, (row * kSeparateColumns<C> + column) * hidden + e.hidden,
                    zero ? 0.0f : x);
    };
#pragma unroll
    for (int k = 0; k < C::kGates; ++k) {
      put<scalar_t>(a.grad_gates_x, (row * C::kGates + k) * hidden + e.hidden,
                    zero ? 0.0f : step[i].grad_gates_x[k]);
      if (in_set(C::kSeparate, k)) {
        put_separate(place_in_set(C::kSeparate, k), step[i].grad_gates_h[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < C::kParameters; ++k) {
      put_separate(size_of_set(C::kSeparate) + k, step[i].grad_parameter[k]);
    }
  }
};

}  // namespace seqkernels
