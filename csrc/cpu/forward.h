// Whole sequences forward: per step and panel of units the product, then the cell on its result.
//
// Phase 0 loads the initial state, then come `kStages` phases a step, the last phase stores the
// final state. The state lives in the compute type, rows sorted, and is masked for the NEXT step's
// reset when it is written. gru_reset_before takes two stages: r, z and r * h; then the update.
#pragma once
#include "kernels.h"
#include "product.h"
#include "vec.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename C>
struct IsResetBefore {
  static constexpr bool value = false;
};
template <>
struct IsResetBefore<GruResetBefore> {
  static constexpr bool value = true;
};

// Columns j0 to j1 of a row of another type.
template <typename To, typename From>
SK_ALWAYS void convert(To* to, const From* from, int64_t j0, int64_t j1) {
  constexpr int kLanes = Vec<Compute<From>>::kLanes;
  int64_t j = j0;
  for (; j + kLanes <= j1; j += kLanes) store(to + j, load(from + j));
  if (j < j1) store<false>(to + j, load<false>(from + j, j1 - j), j1 - j);
}
template <typename S>
SK_ALWAYS void zero(S* to, int64_t j0, int64_t j1) {
  if (j0 < j1) std::memset(to + j0, 0, (j1 - j0) * sizeof(S));
}

// Place in time of a row's state before or after a step.
struct Moment {
  int64_t t, before, after;  // this step, the one taken before it, the one taken after it

  SK_ALWAYS Moment(const Steps& s, int64_t step) {
    t = s.reverse ? s.steps - 1 - step : step;
    before = s.reverse ? t + 1 : t - 1;
    after = s.reverse ? t - 1 : t + 1;
  }
  SK_ALWAYS static bool exists(int64_t t, int64_t length) { return t >= 0 && t < length; }
};
SK_ALWAYS bool is_reset(const Steps& s, int64_t t, int64_t row) {
  return s.reset != nullptr && s.reset[t * s.batch + row];
}

template <typename C, typename S>
struct ForwardKernel {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr bool kBefore = IsResetBefore<C>::value;
  static constexpr int kGates = C::kGates, kLanes = V::kLanes, kStages = kBefore ? 2 : 1;
  // Vectors of units in a panel: cells with few gates take two, to fill the tile.
  static constexpr int kVectors = kGates == 1 || kBefore ? 2 : 1;
  static constexpr int64_t kUnits = kVectors * kLanes;
  // Gates of each stage's product, and where its panels and biases begin.
  static constexpr int kFirstGates = kBefore ? 2 : kGates;

  static int64_t panels(const Steps& s) { return (s.hidden + kUnits - 1) / kUnits; }
  template <int kStageGates, int kGate>
  static const T* panel(const Forward& f, int64_t p) {
    return static_cast<const T*>(f.packed) +
           (panels(f) * kGate + p * kStageGates) * kUnits * f.hidden;
  }
  template <int kStageGates, int kGate>
  static const T* bias(const Forward& f, int64_t p) {
    return static_cast<const T*>(f.packed_bias) + (panels(f) * kGate + p * kStageGates) * kUnits;
  }

  // Rows g * H + j of weight_hh become columns of the panel: [H, kStageGates, kUnits].
  template <int kStageGates, int kGate>
  static void pack_panel(const Forward& f, int64_t p) {
    const int64_t H = f.hidden, width = kStageGates * kUnits;
    const S* weight = static_cast<const S*>(f.weight_hh);
    T* to = const_cast<T*>(panel<kStageGates, kGate>(f, p));
    T* to_bias = const_cast<T*>(bias<kStageGates, kGate>(f, p));
    for (int64_t column = 0; column < width; column += kLanes) {
      const int64_t gate = kGate + column / kUnits, j0 = p * kUnits + column % kUnits;
      for (int64_t k = 0; k < H; k += kLanes) {
        const int64_t n = H - k < kLanes ? H - k : kLanes;
        V block[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const S* row = weight + (gate * H + j0 + lane) * H + k;
          if (j0 + lane >= H)
            block[lane] = V(T(0));
          else
            block[lane] = n == kLanes ? load(row) : load<false>(row, n);
        }
        transpose(block);
        for (int64_t i = 0; i < n; ++i) store(to + (k + i) * width + column, block[i]);
      }
      const int64_t n = H - j0 < 0 ? 0 : H - j0 < kLanes ? H - j0 : kLanes;
      const S* from = static_cast<const S*>(f.bias_hh);
      store(to_bias + column, from && n ? load<false>(from + gate * H + j0, n) : V(T(0)));
    }
  }

  static void pack(const Forward& f, int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) {
      pack_panel<kFirstGates, 0>(f, p);
      if constexpr (kBefore) pack_panel<1, 2>(f, p);
    }
  }

  static void load_state(const Forward& f, const Group& g, int64_t j0, int64_t j1) {
    const S *h_0 = static_cast<const S*>(f.h_0), *c_0 = static_cast<const S*>(f.c_0);
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t at = g.row[r] * f.hidden, to = r * f.stride;
      const int64_t first = f.reverse ? g.length[r] - 1 : 0;
      const bool clear = g.length[r] > 0 && is_reset(f, first, g.row[r]);
      // A row that begins late, or never, finds its state in whichever buffer that step reads.
      for (void* buffer : g.h) {
        T* h = static_cast<T*>(buffer) + to;
        if (clear)
          zero(h, j0, j1);
        else
          convert(h, h_0 + at, j0, j1);
      }
      if constexpr (C::kStates == 2) {
        T* c = static_cast<T*>(g.c) + to;
        if (clear)
          zero(c, j0, j1);
        else
          convert(c, c_0 + at, j0, j1);
      }
    }
  }

  static void store_state(const Forward& f, const Group& g, int64_t j0, int64_t j1) {
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t at = g.row[r] * f.hidden, from = r * f.stride;
      // The buffer written by the row's last step; rows run backwards all end with step T - 1.
      const int64_t written = f.reverse ? f.steps : g.length[r];
      convert(static_cast<S*>(f.h_n) + at, static_cast<const T*>(g.h[written & 1]) + from, j0, j1);
      if constexpr (C::kStates == 2)
        convert(static_cast<S*>(f.c_n) + at, static_cast<const T*>(g.c) + from, j0, j1);
    }
  }

  // The cell on one row and one vector of units; sums and bias stand kUnits apart a gate.
  template <bool kFull, int kStage>
  SK_ALWAYS static void units(const Forward& f, const Group& g, const Moment& m, int64_t next,
                              int64_t r, int64_t j, int64_t n, const T* sums, const T* biases) {
    const int64_t H = f.hidden, row = g.row[r], at = f.first_row[m.t] + row, own = r * f.stride + j;
    const int64_t from = f.symbols ? f.symbols[at] : at;
    const S* gates_x = static_cast<const S*>(f.gates_x) + from * kGates * H + j;
    S* saved_to = static_cast<S*>(f.saved) + (f.saved ? at * C::kSaved * H + j : 0);
    V saved[C::kSaved > 0 ? C::kSaved : 1], new_h, new_c;
    const V h = load(static_cast<const T*>(g.h[next ^ 1]) + own);
    if constexpr (kBefore) {
      T* z = static_cast<T*>(g.z) + own;
      if constexpr (kStage == 0) {
        V x[2], y[2];
#pragma GCC unroll 2
        for (int gate = 0; gate < 2; ++gate) {
          x[gate] = load<kFull>(gates_x + gate * H, n);
          y[gate] = load(sums + gate * kUnits) + load(biases + gate * kUnits);
        }
        store(static_cast<T*>(g.reset_h) + own, C::reset(x, y, h, saved));
        store(z, saved[1]);
        if (f.saved)
          for (int k = 0; k < 2; ++k) store<kFull>(saved_to + k * H, saved[k], n);
        return;
      }
      saved[1] = load(static_cast<const T*>(z));
      new_h = C::update(load<kFull>(gates_x + 2 * H, n), load(sums) + load(biases), h, saved);
      if (f.saved) store<kFull>(saved_to + 2 * H, saved[2], n);
    } else {
      V x[kGates], y[kGates], c = h;
#pragma GCC unroll 4
      for (int gate = 0; gate < kGates; ++gate) {
        x[gate] = load<kFull>(gates_x + gate * H, n);
        y[gate] = load(sums + gate * kUnits) + load(biases + gate * kUnits);
      }
      if constexpr (C::kStates == 2) c = load(static_cast<const T*>(g.c) + own);
      C::forward(x, y, h, c, &new_h, &new_c, saved);
      if (f.saved)
#pragma GCC unroll 4
        for (int k = 0; k < C::kSaved; ++k) store<kFull>(saved_to + k * H, saved[k], n);
    }
    store<kFull>(static_cast<S*>(f.output) + at * H + j, new_h, n);
    const bool clear = Moment::exists(m.after, g.length[r]) && is_reset(f, m.after, row);
    store(static_cast<T*>(g.h[next]) + own, clear ? V(T(0)) : new_h);
    if constexpr (C::kStates == 2) {
      if (f.c_sequence) store<kFull>(static_cast<S*>(f.c_sequence) + at * H + j, new_c, n);
      store(static_cast<T*>(g.c) + own, clear ? V(T(0)) : new_c);
    }
  }

  template <int kStage>
  static void step(const Forward& f, const Group& g, int64_t step, int64_t p0, int64_t p1) {
    constexpr int kStageGates = kStage == 0 ? kFirstGates : 1, kGate = kStage == 0 ? 0 : 2;
    constexpr int64_t kWidth = kStageGates * kUnits;
    alignas(64) T sums[kBlockRows * kWidth];
    const Moment m(f, step);
    const int64_t active = g.active[m.t], next = (step + 1) & 1;
    const T* from = static_cast<const T*>(kStage == 0 ? g.h[next ^ 1] : g.reset_h);
    for (int64_t p = p0; p < p1; ++p) {
      const T *weights = panel<kStageGates, kGate>(f, p), *biases = bias<kStageGates, kGate>(f, p);
      for (int64_t first = 0; first < active; first += kBlockRows) {
        const int64_t rows = active - first < kBlockRows ? active - first : kBlockRows;
        product<T, kStageGates * kVectors>(from + first * f.stride, f.stride, rows, weights,
                                           f.hidden, sums);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t j = p * kUnits + v * kLanes, n = f.hidden - j;
          if (n >= kLanes)
            for (int64_t r = 0; r < rows; ++r)
              units<true, kStage>(f, g, m, next, first + r, j, n, sums + r * kWidth + v * kLanes,
                                  biases + v * kLanes);
          else if (n > 0)
            for (int64_t r = 0; r < rows; ++r)
              units<false, kStage>(f, g, m, next, first + r, j, n, sums + r * kWidth + v * kLanes,
                                   biases + v * kLanes);
        }
      }
    }
  }

  // Rows that step t does not reach give zeros.
  static void zero_rows(const Forward& f, const Group& g, int64_t t, int64_t j0, int64_t j1) {
    for (int64_t r = g.active[t]; r < g.rows; ++r) {
      const int64_t at = (f.first_row[t] + g.row[r]) * f.hidden;
      zero(static_cast<S*>(f.output) + at, j0, j1);
      if (f.c_sequence) zero(static_cast<S*>(f.c_sequence) + at, j0, j1);
      for (int k = 0; f.saved && k < C::kSaved; ++k)
        zero(static_cast<S*>(f.saved) + at * C::kSaved + k * f.hidden, j0, j1);
    }
  }

  static void run(const Forward& f, const Group& g, int64_t phase, int64_t p0, int64_t p1) {
    const int64_t j0 = p0 * kUnits, j1 = p1 * kUnits < f.hidden ? p1 * kUnits : f.hidden;
    if (phase == 0) {
      if (f.pack_inside) pack(f, p0, p1);
      load_state(f, g, j0, j1);
    } else if (phase > f.steps * kStages) {
      store_state(f, g, j0, j1);
    } else {
      const int64_t number = (phase - 1) / kStages;
      if (kStages == 2 && (phase - 1) % 2 == 1) {
        if constexpr (kStages == 2) step<1>(f, g, number, p0, p1);
      } else {
        step<0>(f, g, number, p0, p1);
        if (f.padded) zero_rows(f, g, Moment(f, number).t, j0, j1);
      }
    }
  }
};

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
