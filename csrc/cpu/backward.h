// Whole sequences backward: per step and panel of units the product of the later step's gate
// gradients with weight_hh, which completes the gradient of h, then the cell's backward.
//
// Phase 0 loads the gradients of the final state, then come `kStages` phases a step, then one that
// gathers the rows that ended before the others and one that computes the gradient of the initial
// state. A reset stops a row's gradient by leaving zeros for the step before.
#pragma once
#include "forward.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename C, typename S>
struct BackwardKernel {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr bool kBefore = IsResetBefore<C>::value;
  static constexpr int kGates = C::kGates, kLanes = V::kLanes, kStages = kBefore ? 2 : 1;
  static constexpr int kVectors = 2;
  static constexpr int64_t kUnits = kVectors * kLanes;
  // Gates whose gradients reach h through the product between two steps.
  static constexpr int kCarried = kBefore ? 2 : kGates;

  static int64_t panels(const Steps& s) { return (s.hidden + kUnits - 1) / kUnits; }
  // Rows `kGate` * H on of weight_hh: [gates * H, kUnits].
  template <int kStageGates, int kGate>
  static const T* panel(const Backward& b, int64_t p) {
    return static_cast<const T*>(b.packed) +
           (panels(b) * kGate + p * kStageGates) * kUnits * b.hidden;
  }

  template <int kStageGates, int kGate>
  static void pack_panel(const Backward& b, int64_t p) {
    const int64_t H = b.hidden, j = p * kUnits;
    const S* from = static_cast<const S*>(b.weight_hh) + kGate * H * H + j;
    T* to = const_cast<T*>(panel<kStageGates, kGate>(b, p));
    for (int64_t k = 0; k < kStageGates * H; ++k, from += H, to += kUnits)
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
      pack_panel<kCarried, 0>(b, p);
      if constexpr (kBefore) pack_panel<1, 2>(b, p);
    }
  }

  static void load_gradients(const Backward& b, const Group& g, int64_t j0, int64_t j1) {
    const S *h_n = static_cast<const S*>(b.grad_h_n), *c_n = static_cast<const S*>(b.grad_c_n);
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t at = g.row[r] * b.hidden, to = r * b.stride;
      T* h = static_cast<T*>(g.grad_h) + to;
      if (h_n)
        convert(h, h_n + at, j0, j1);
      else
        zero(h, j0, j1);
      if constexpr (C::kStates == 2) {
        T* c = static_cast<T*>(g.grad_c) + to;
        if (c_n)
          convert(c, c_n + at, j0, j1);
        else
          zero(c, j0, j1);
      }
      for (void* buffer : g.grad_gates)
        for (int gate = 0; gate < kGates; ++gate)
          zero(static_cast<T*>(buffer) + r * b.gates_stride + gate * b.hidden, j0, j1);
    }
  }

  // The state a step began with: its h or c sequence one step earlier, the initial state, or zero.
  template <bool kFull>
  SK_ALWAYS static V before(const Backward& b, const Moment& m, int64_t row, int64_t length,
                            const void* sequence, const void* initial, int64_t j, int64_t n) {
    if (is_reset(b, m.t, row)) return V(T(0));
    if (!Moment::exists(m.before, length))
      return load<kFull>(static_cast<const S*>(initial) + row * b.hidden + j, n);
    return load<kFull>(
        static_cast<const S*>(sequence) + (b.first_row[m.before] + row) * b.hidden + j, n);
  }

  // The cell's backward on one row and one vector of units.
  template <bool kFull, int kStage>
  SK_ALWAYS static void units(const Backward& b, const Group& g, const Moment& m, int64_t next,
                              int64_t r, int64_t j, int64_t n, const T* sums) {
    const int64_t H = b.hidden, row = g.row[r], at = b.first_row[m.t] + row;
    const bool stop = is_reset(b, m.t, row);
    S* grad_x = static_cast<S*>(b.grad_gates_x) + at * kGates * H + j;
    T* grad_gates = static_cast<T*>(g.grad_gates[next]) + r * b.gates_stride + j;
    T* carry = static_cast<T*>(g.grad_h) + r * b.stride + j;
    const auto keep = [&](int gate, V x) {
      store<kFull>(grad_gates + gate * H, stop ? V(T(0)) : x, n);
    };
    V saved[C::kSaved > 0 ? C::kSaved : 1], grads[kGates], grad_prev_h;
    if constexpr (C::kSaved > 0) {
      const S* from = static_cast<const S*>(b.saved) + at * C::kSaved * H + j;
#pragma GCC unroll 4
      for (int k = 0; k < C::kSaved; ++k) saved[k] = load<kFull>(from + k * H, n);
    }
    const V h = before<kFull>(b, m, row, g.length[r], b.output, b.h_0, j, n);
    V grad_h = load(sums);
    if constexpr (kStage == 0) {
      grad_h = grad_h + load(static_cast<const T*>(carry));
      if (b.grad_output)
        grad_h = grad_h + load<kFull>(static_cast<const S*>(b.grad_output) + at * H + j, n);
    }
    if constexpr (kBefore && kStage == 0) {
      C::update_backward(saved, h, grad_h, grads, &grad_prev_h);
      for (int gate = 1; gate < 3; ++gate) {
        store<kFull>(grad_x + gate * H, grads[gate], n);
        keep(gate, grads[gate]);
      }
    } else if constexpr (kBefore) {
      grad_prev_h = load(static_cast<const T*>(carry));
      C::reset_backward(saved, h, grad_h, grads, &grad_prev_h);
      store<kFull>(grad_x, grads[0], n);
      keep(0, grads[0]);
    } else {
      V new_h = h, c = h, new_c = h, grad_c(T(0)), grad_hn, grad_prev_c;
      if constexpr (C::kSaved == 0)
        new_h = load<kFull>(static_cast<const S*>(b.output) + at * H + j, n);
      if constexpr (C::kStates == 2) {
        c = before<kFull>(b, m, row, g.length[r], b.c_sequence, b.c_0, j, n);
        new_c = load<kFull>(static_cast<const S*>(b.c_sequence) + at * H + j, n);
        grad_c = load(static_cast<const T*>(g.grad_c) + r * b.stride + j);
        if (b.grad_c_sequence)
          grad_c = grad_c + load<kFull>(static_cast<const S*>(b.grad_c_sequence) + at * H + j, n);
      }
      C::backward(saved, h, c, new_h, new_c, grad_h, grad_c, grads, &grad_hn, &grad_prev_h,
                  &grad_prev_c);
#pragma GCC unroll 4
      for (int gate = 0; gate < kGates; ++gate) {
        store<kFull>(grad_x + gate * H, grads[gate], n);
        if constexpr (C::kHidden == 0) {
          keep(gate, grads[gate]);
        } else {
          keep(gate, gate == 2 ? grad_hn : grads[gate]);
        }
      }
      if constexpr (C::kHidden > 0)
        store<kFull>(static_cast<S*>(b.grad_gates_h) + at * H + j, grad_hn, n);
      if constexpr (C::kStates == 2)
        store(static_cast<T*>(g.grad_c) + r * b.stride + j, stop ? V(T(0)) : grad_prev_c);
    }
    store(carry, stop ? V(T(0)) : grad_prev_h);
  }

  template <int kStage>
  static void step(const Backward& b, const Group& g, int64_t number, int64_t p0, int64_t p1) {
    constexpr int kStageGates = kStage == 0 ? kCarried : 1, kGate = kStage == 0 ? 0 : 2;
    alignas(64) T sums[kBlockRows * kUnits];
    const Moment m(b, b.steps - 1 - number);
    const int64_t active = g.active[m.t], next = (number + 1) & 1;
    // The first stage reads what the later step left, the second what the first has just written.
    const T* from = static_cast<const T*>(g.grad_gates[kStage == 0 ? next ^ 1 : next]);
    for (int64_t p = p0; p < p1; ++p) {
      const T* weights = panel<kStageGates, kGate>(b, p);
      for (int64_t first = 0; first < active; first += kBlockRows) {
        const int64_t rows = active - first < kBlockRows ? active - first : kBlockRows;
        if (kStage == 0 && number == 0)
          std::memset(sums, 0, rows * kUnits * sizeof(T));
        else
          product<T, kVectors>(from + first * b.gates_stride + kGate * b.hidden, b.gates_stride,
                               rows, weights, kStageGates * b.hidden, sums);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t j = p * kUnits + v * kLanes, n = b.hidden - j;
          if (n >= kLanes)
            for (int64_t r = 0; r < rows; ++r)
              units<true, kStage>(b, g, m, next, first + r, j, n, sums + r * kUnits + v * kLanes);
          else if (n > 0)
            for (int64_t r = 0; r < rows; ++r)
              units<false, kStage>(b, g, m, next, first + r, j, n, sums + r * kUnits + v * kLanes);
        }
      }
    }
  }

  // Rows that step t does not reach have no gradient.
  static void zero_rows(const Backward& b, const Group& g, int64_t t, int64_t j0, int64_t j1) {
    for (int64_t r = g.active[t]; r < g.rows; ++r) {
      const int64_t at = (b.first_row[t] + g.row[r]) * b.hidden;
      for (int gate = 0; gate < kGates; ++gate)
        zero(static_cast<S*>(b.grad_gates_x) + at * kGates + gate * b.hidden, j0, j1);
      if (C::kHidden > 0) zero(static_cast<S*>(b.grad_gates_h) + at, j0, j1);
    }
  }

  // Rows taken in reverse end their backward at step length - 1 and may have left their gate
  // gradients in the buffer that the last product does not read.
  static void gather(const Backward& b, const Group& g, int64_t j0, int64_t j1) {
    for (int64_t r = 0; r < g.rows; ++r) {
      if (!b.reverse || (g.length[r] & 1) == (b.steps & 1)) continue;
      for (int gate = 0; gate < kCarried; ++gate) {
        const int64_t at = r * b.gates_stride + gate * b.hidden;
        convert(static_cast<T*>(g.grad_gates[b.steps & 1]) + at,
                static_cast<const T*>(g.grad_gates[~b.steps & 1]) + at, j0, j1);
      }
    }
  }

  static void finish(const Backward& b, const Group& g, int64_t p0, int64_t p1) {
    alignas(64) T sums[kBlockRows * kUnits];
    const T* from = static_cast<const T*>(g.grad_gates[b.steps & 1]);
    for (int64_t p = p0; p < p1; ++p)
      for (int64_t first = 0; first < g.rows; first += kBlockRows) {
        const int64_t rows = g.rows - first < kBlockRows ? g.rows - first : kBlockRows;
        product<T, kVectors>(from + first * b.gates_stride, b.gates_stride, rows,
                             panel<kCarried, 0>(b, p), kCarried * b.hidden, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < kVectors; ++v) {
            const int64_t j = p * kUnits + v * kLanes, n = b.hidden - j;
            const int64_t own = (first + r) * b.stride + j, at = g.row[first + r] * b.hidden + j;
            if (n <= 0) continue;
            const V grad_h =
                load(sums + r * kUnits + v * kLanes) + load(static_cast<const T*>(g.grad_h) + own);
            store<false>(static_cast<S*>(b.grad_h_0) + at, grad_h, n < kLanes ? n : kLanes);
            if constexpr (C::kStates == 2)
              store<false>(static_cast<S*>(b.grad_c_0) + at,
                           load(static_cast<const T*>(g.grad_c) + own), n < kLanes ? n : kLanes);
          }
      }
  }

  static void run(const Backward& b, const Group& g, int64_t phase, int64_t p0, int64_t p1) {
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
