// Whole sequences backward: per step and panel of units the product of the later step's gate
// gradients with weight_hh, which completes the gradient of h, then the cell's backward.
//
// Phase 0 loads the gradients of the final state, then come `kStages` phases a step, then one that
// gathers the rows that ended before the others and one that computes the gradient of the initial
// state. A reset stops a row's gradient by leaving zeros for the step before.
#pragma once
#include "cpu/sequence/forward.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename C, typename S>
struct BackwardKernel {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int kGates = C::kGates, kOthers = kOtherStates<C>, kStages = kStageCount<C>;
  static constexpr int kLanes = V::kLanes, kVectors = 2;
  static constexpr int64_t kUnits = kVectors * kLanes;
  // What flows back from a step to the one before it: the gates of the first product.
  static constexpr Stage kFirst = C::kStages[0];
  static constexpr int kSeparate = kSeparateColumns<C>;

  static int64_t panels(const Steps& s) { return (s.hidden + kUnits - 1) / kUnits; }
  // The rows of weight_hh that belong to a stage: [gates * H, kUnits].
  template <int kStage>
  static const T* panel(const Backward& b, int64_t p) {
    constexpr Stage kThis = C::kStages[kStage];
    return static_cast<const T*>(b.packed) +
           (panels(b) * kThis.first_gate + p * kThis.gates) * kUnits * b.hidden;
  }

  template <int kStage>
  static void pack_panel(const Backward& b, int64_t p) {
    constexpr Stage kThis = C::kStages[kStage];
    const int64_t H = b.hidden, j = p * kUnits;
    const S* from = static_cast<const S*>(b.weight_hh) + kThis.first_gate * H * H + j;
    T* to = const_cast<T*>(panel<kStage>(b, p));
    for (int64_t k = 0; k < kThis.gates * H; ++k, from += H, to += kUnits)
      for (int v = 0; v < kVectors; ++v) {
        const int64_t n = H - j - v * kLanes;
        V x(T(0));
        if (n >= kLanes)
          x = load(from + v * kLanes);
        else if (n > 0)
          x = load<false>(from + v * kLanes, n);
        store(to + v * kLanes, x);
      }
  }

  static void pack(const Backward& b, int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) {
      pack_panel<0>(b, p);
      if constexpr (kStages > 1) pack_panel<1>(b, p);
      pack_parameters<C, S, kUnits>(b, 0, p);
    }
  }

  static void load_gradients(const Backward& b, const Slice& g, int64_t j0, int64_t j1) {
    const S *h_n = static_cast<const S*>(b.grad_h_n), *c_n = static_cast<const S*>(b.grad_c_n);
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t at = g.row[r] * b.hidden, to = r * b.stride;
      T* h = static_cast<T*>(g.grad_h) + to;
      if (h_n)
        convert(h, h_n + at, j0, j1);
      else
        zero(h, j0, j1);
      for (int s = 0; s < kOthers; ++s) {
        T* other = static_cast<T*>(g.grad_others) + (r * kOthers + s) * b.stride;
        if (c_n)
          convert(other, c_n + (g.row[r] * kOthers + s) * b.hidden, j0, j1);
        else
          zero(other, j0, j1);
      }
      for (void* buffer : g.grad_gates)
        for (int gate = 0; gate < kGates; ++gate)
          zero(static_cast<T*>(buffer) + r * b.gates_stride + gate * b.hidden, j0, j1);
    }
  }

  // State number s before the step of row r, from unit j on.
  template <bool kFull>
  SK_ALWAYS static V before(const Backward& b, const Moment& m, int64_t row, int64_t length, int s,
                            int64_t j, int64_t n) {
    if (is_reset(b, m.t, row)) return V(T(0));
    const bool begins = !Moment::exists(m.before, length);
    const int64_t at = begins ? row : b.first_row[m.before] + row;
    const void* from = s == 0 ? begins ? b.h_0 : b.output : begins ? b.c_0 : b.c_sequence;
    return load<kFull>(static_cast<const S*>(from) + state_at<C>(at, s, b.hidden, j), n);
  }

  // The cell's backward on one row and one vector of units. Phases run the stages from the last to
  // the first: the first phase is given the gradient of the new state, the other that of the
  // operand.
  template <bool kFull, int kPhase>
  SK_ALWAYS static void units(const Backward& b, const Slice& g, const Moment& m, int64_t next,
                              int64_t r, int64_t j, int64_t n, const T* sums, const T* parameters) {
    constexpr int kStage = kStages - 1 - kPhase;
    constexpr Stage kThis = C::kStages[kStage];
    const int64_t H = b.hidden, row = g.row[r], at = b.first_row[m.t] + row;
    const bool stop = is_reset(b, m.t, row);
    S* grad_x = static_cast<S*>(b.grad_gates_x) + at * kGates * H + j;
    T* grad_gates = static_cast<T*>(g.grad_gates[next]) + r * b.gates_stride + j;
    const auto carry = [&](int s) {
      return s == 0 ? static_cast<T*>(g.grad_h) + r * b.stride + j
                    : static_cast<T*>(g.grad_others) + (r * kOthers + s - 1) * b.stride + j;
    };
    StepGrad<C, V> v;
#pragma GCC unroll 8
    for (int k = 0; k < C::kSaved; ++k)
      v.saved[k] = load<kFull>(static_cast<const S*>(b.saved) + (at * C::kSaved + k) * H + j, n);
#pragma GCC unroll 8
    for (int k = 0; k < C::kParameters; ++k) v.parameter[k] = load(parameters + k * kUnits);
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s) {
      if (in_set(C::kReadsState, s)) v.state[s] = before<kFull>(b, m, row, g.length[r], s, j, n);
      if (in_set(C::kReadsNewState, s))
        v.new_state[s] = load<kFull>(static_cast<const S*>(s == 0 ? b.output : b.c_sequence) +
                                         state_at<C>(at, s, b.hidden, j),
                                     n);
      const V carried = load(static_cast<const T*>(carry(s)));
      if constexpr (kPhase == 0) {
        const void* given = s == 0 ? b.grad_output : b.grad_c_sequence;
        V grad = s == 0 ? load(sums) + carried : carried;
        if (given)
          grad =
              grad + load<kFull>(static_cast<const S*>(given) + state_at<C>(at, s, b.hidden, j), n);
        v.grad_new_state[s] = grad;
      } else {
        v.grad_state[s] = carried;
      }
    }
    if constexpr (kPhase > 0) v.grad_operand = load(sums);
    C::template backward<kStage>(v);
#pragma GCC unroll 8
    for (int gate = 0; gate < kGates; ++gate) {
      if (!in_set(kThis.grads, gate)) continue;
      store<kFull>(grad_x + gate * H, v.grad_gates_x[gate], n);
      // Only the first product reaches back across a reset.
      const bool leaves = gate >= kFirst.first_gate && gate < kFirst.first_gate + kFirst.gates;
      store<kFull>(grad_gates + gate * H, leaves && stop ? V(T(0)) : v.through(gate), n);
    }
    if constexpr (kSeparate > 0) {
      S* to = static_cast<S*>(b.grad_gates_h) + at * kSeparate * H + j;
#pragma GCC unroll 8
      for (int gate = 0; gate < kGates; ++gate)
        if (in_set(C::kSeparate & kThis.grads, gate))
          store<kFull>(to + place_in_set(C::kSeparate, gate) * H, v.grad_gates_h[gate], n);
#pragma GCC unroll 8
      for (int k = 0; k < C::kParameters; ++k)
        if (in_set(kThis.parameters, k))
          store<kFull>(to + (size_of_set(C::kSeparate) + k) * H, v.grad_parameter[k], n);
    }
#pragma GCC unroll 8
    for (int s = 0; s < C::kStates; ++s) store(carry(s), stop ? V(T(0)) : v.grad_state[s]);
  }

  template <int kPhase>
  static void step(const Backward& b, const Slice& g, int64_t number, int64_t p0, int64_t p1) {
    // The product that completes the gradient which this phase is given.
    constexpr int kStage = kPhase == 0 ? 0 : kStages - kPhase;
    constexpr Stage kThis = C::kStages[kStage];
    alignas(64) T sums[kBlockRows * kUnits];
    const Moment m(b, b.steps - 1 - number);
    const int64_t active = g.active[m.t], next = (number + 1) & 1;
    // The first phase reads what the later step left, the second what the first has just written.
    const T* from = static_cast<const T*>(g.grad_gates[kPhase == 0 ? next ^ 1 : next]);
    for (int64_t p = p0; p < p1; ++p) {
      const T* weights = panel<kStage>(b, p);
      const T* parameters = static_cast<const T*>(b.packed_bias) + p * C::kParameters * kUnits;
      for (int64_t first = 0; first < active; first += kBlockRows) {
        const int64_t rows = active - first < kBlockRows ? active - first : kBlockRows;
        if (kPhase == 0 && number == 0)
          std::memset(sums, 0, rows * kUnits * sizeof(T));
        else
          product<T, kVectors>(from + first * b.gates_stride + kThis.first_gate * b.hidden,
                               b.gates_stride, rows, weights, kThis.gates * b.hidden, sums);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t j = p * kUnits + v * kLanes, n = b.hidden - j;
          if (n >= kLanes)
            for (int64_t r = 0; r < rows; ++r)
              units<true, kPhase>(b, g, m, next, first + r, j, n, sums + r * kUnits + v * kLanes,
                                  parameters + v * kLanes);
          else if (n > 0)
            for (int64_t r = 0; r < rows; ++r)
              units<false, kPhase>(b, g, m, next, first + r, j, n, sums + r * kUnits + v * kLanes,
                                   parameters + v * kLanes);
        }
      }
    }
  }

  // Rows that step t does not reach have no gradient.
  static void zero_rows(const Backward& b, const Slice& g, int64_t t, int64_t j0, int64_t j1) {
    for (int64_t r = g.active[t]; r < g.rows; ++r) {
      const int64_t at = (b.first_row[t] + g.row[r]) * b.hidden;
      for (int gate = 0; gate < kGates; ++gate)
        zero(static_cast<S*>(b.grad_gates_x) + at * kGates + gate * b.hidden, j0, j1);
      for (int column = 0; column < kSeparate; ++column)
        zero(static_cast<S*>(b.grad_gates_h) + at * kSeparate + column * b.hidden, j0, j1);
    }
  }

  // Rows taken in reverse end their backward at step length - 1 and may have left their gate
  // gradients in the buffer that the last product does not read.
  static void gather(const Backward& b, const Slice& g, int64_t j0, int64_t j1) {
    for (int64_t r = 0; r < g.rows; ++r) {
      if (!b.reverse || (g.length[r] & 1) == (b.steps & 1)) continue;
      for (int gate = 0; gate < kFirst.gates; ++gate) {
        const int64_t at = r * b.gates_stride + (kFirst.first_gate + gate) * b.hidden;
        convert(static_cast<T*>(g.grad_gates[b.steps & 1]) + at,
                static_cast<const T*>(g.grad_gates[~b.steps & 1]) + at, j0, j1);
      }
    }
  }

  static void finish(const Backward& b, const Slice& g, int64_t p0, int64_t p1) {
    alignas(64) T sums[kBlockRows * kUnits];
    const T* from = static_cast<const T*>(g.grad_gates[b.steps & 1]);
    for (int64_t p = p0; p < p1; ++p)
      for (int64_t first = 0; first < g.rows; first += kBlockRows) {
        const int64_t rows = g.rows - first < kBlockRows ? g.rows - first : kBlockRows;
        product<T, kVectors>(from + first * b.gates_stride + kFirst.first_gate * b.hidden,
                             b.gates_stride, rows, panel<0>(b, p), kFirst.gates * b.hidden, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < kVectors; ++v) {
            const int64_t j = p * kUnits + v * kLanes, n = b.hidden - j;
            const int64_t own = (first + r) * b.stride + j, at = g.row[first + r] * b.hidden + j;
            if (n <= 0) continue;
            const V grad_h =
                load(sums + r * kUnits + v * kLanes) + load(static_cast<const T*>(g.grad_h) + own);
            store<false>(static_cast<S*>(b.grad_h_0) + at, grad_h, n < kLanes ? n : kLanes);
            for (int s = 1; s < C::kStates; ++s)
              store<false>(
                  static_cast<S*>(b.grad_c_0) + state_at<C>(g.row[first + r], s, b.hidden, j),
                  load(static_cast<const T*>(g.grad_others) +
                       state_at<C>(first + r, s, b.stride, j)),
                  n < kLanes ? n : kLanes);
          }
      }
  }

  static void run(const Backward& b, const Slice& g, int64_t phase, int64_t p0, int64_t p1) {
    const int64_t j0 = p0 * kUnits, j1 = p1 * kUnits < b.hidden ? p1 * kUnits : b.hidden;
    const int64_t last_step = b.steps * kStages;
    if (phase == 0) {
      if (b.pack_inside) pack(b, p0, p1);
      load_gradients(b, g, j0, j1);
    } else if (phase == last_step + 1) {
      gather(b, g, j0, j1);
    } else if (phase == last_step + 2) {
      finish(b, g, p0, p1);
    } else {
      const int64_t number = (phase - 1) / kStages;
      if (kStages == 2 && (phase - 1) % 2 == 1) {
        if constexpr (kStages == 2) step<1>(b, g, number, p0, p1);
      } else {
        step<0>(b, g, number, p0, p1);
        if (b.padded) zero_rows(b, g, Moment(b, b.steps - 1 - number).t, j0, j1);
      }
    }
  }
};

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
