// Whole sequences forward: per step and panel of units the product, then the cell on its result.
//
// Phase 0 loads the initial state, then come `kStages` phases a step, the last phase stores the
// final state. The state lives in the compute type, rows sorted, and is masked for the NEXT step's
// reset when it is written. Between two stages of a step its operand and what it keeps are there.
#pragma once
#include "cpu/isa/vec.h"
#include "cpu/products/tiles.h"
#include "cpu/sequence/kernels.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

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

// Gates of the widest product of a cell.
template <typename C>
constexpr int widest_stage() {
  int widest = 0;
  for (const Stage& stage : C::kStages) widest = stage.gates > widest ? stage.gates : widest;
  return widest;
}

// Vector number `index` of bias_hh, from unit j on, in the compute type; zeros past its end.
template <typename S>
SK_ALWAYS void pack_vector(Compute<S>* to, const S* bias_hh, int64_t hidden, int64_t index,
                           int64_t j) {
  using V = Vec<Compute<S>>;
  const int64_t left = hidden - j, n = left < 0 ? 0 : left < V::kLanes ? left : V::kLanes;
  store(to, bias_hh && n ? load<false>(bias_hh + index * hidden + j, n) : V(0));
}

// The parameters of panel p, [kParameters, kUnits], in packed_bias from `first` on.
template <typename C, typename S, int64_t kUnits>
void pack_parameters(const Steps& s, int64_t first, int64_t p) {
  Compute<S>* to = static_cast<Compute<S>*>(s.packed_bias) + first + p * C::kParameters * kUnits;
  for (int k = 0; k < C::kParameters; ++k)
    for (int64_t u = 0; u < kUnits; u += Vec<Compute<S>>::kLanes)
      pack_vector(to + k * kUnits + u, static_cast<const S*>(s.bias_hh), s.hidden, C::kGates + k,
                  p * kUnits + u);
}

template <typename C, typename S>
struct ForwardKernel {
  using T = Compute<S>;
  using V = Vec<T>;
  static constexpr int kGates = C::kGates, kOthers = kOtherStates<C>, kStages = kStageCount<C>;
  static constexpr int kKept = size_of_set(C::kKept), kLanes = V::kLanes;
  // Vectors of units in a panel: cells with few gates take two, to fill the tile.
  static constexpr int kVectors = widest_stage<C>() <= 2 ? 2 : 1;
  static constexpr int64_t kUnits = kVectors * kLanes;

  static int64_t panels(const Steps& s) { return (s.hidden + kUnits - 1) / kUnits; }
  // Where panel p of a stage begins, counted in gates of units.
  template <int kStage>
  static int64_t place(const Forward& f, int64_t p) {
    constexpr Stage kThis = C::kStages[kStage];
    return (panels(f) * kThis.first_gate + p * kThis.gates) * kUnits;
  }
  template <int kStage>
  static const T* panel(const Forward& f, int64_t p) {
    return static_cast<const T*>(f.packed) + place<kStage>(f, p) * f.hidden;
  }
  template <int kStage>
  static const T* bias(const Forward& f, int64_t p) {
    return static_cast<const T*>(f.packed_bias) + place<kStage>(f, p);
  }

  // Rows g * H + j of weight_hh become columns of the panel: [H, gates of the stage, kUnits].
  template <int kStage>
  static void pack_panel(const Forward& f, int64_t p) {
    constexpr Stage kThis = C::kStages[kStage];
    const int64_t H = f.hidden, width = kThis.gates * kUnits;
    const S* weight = static_cast<const S*>(f.weight_hh);
    T* to = const_cast<T*>(panel<kStage>(f, p));
    T* to_bias = const_cast<T*>(bias<kStage>(f, p));
    for (int64_t column = 0; column < width; column += kLanes) {
      const int64_t gate = kThis.first_gate + column / kUnits, j0 = p * kUnits + column % kUnits;
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
      pack_vector(to_bias + column, static_cast<const S*>(f.bias_hh), H, gate, j0);
    }
  }

  static void pack(const Forward& f, int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) {
      pack_panel<0>(f, p);
      if constexpr (kStages > 1) pack_panel<1>(f, p);
      pack_parameters<C, S, kUnits>(f, panels(f) * kGates * kUnits, p);
    }
  }

  static void load_state(const Forward& f, const Slice& g, int64_t j0, int64_t j1) {
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
      for (int s = 0; s < kOthers; ++s) {
        T* other = static_cast<T*>(g.others) + (r * kOthers + s) * f.stride;
        if (clear)
          zero(other, j0, j1);
        else
          convert(other, c_0 + (g.row[r] * kOthers + s) * f.hidden, j0, j1);
      }
    }
  }

  static void store_state(const Forward& f, const Slice& g, int64_t j0, int64_t j1) {
    for (int64_t r = 0; r < g.rows; ++r) {
      const int64_t at = g.row[r] * f.hidden, from = r * f.stride;
      // The buffer written by the row's last step; rows run backwards all end with step T - 1.
      const int64_t written = f.reverse ? f.steps : g.length[r];
      convert(static_cast<S*>(f.h_n) + at, static_cast<const T*>(g.h[written & 1]) + from, j0, j1);
      for (int s = 0; s < kOthers; ++s)
        convert(static_cast<S*>(f.c_n) + (g.row[r] * kOthers + s) * f.hidden,
                static_cast<const T*>(g.others) + (r * kOthers + s) * f.stride, j0, j1);
    }
  }

  // The cell on one row and one vector of units; sums, biases and parameters stand kUnits apart.
  template <bool kFull, int kStage>
  SK_ALWAYS static void units(const Forward& f, const Slice& g, const Moment& m, int64_t next,
                              int64_t r, int64_t j, int64_t n, const T* sums, const T* biases,
                              const T* parameters) {
    constexpr Stage kThis = C::kStages[kStage];
    const int64_t H = f.hidden, row = g.row[r], at = f.first_row[m.t] + row, own = r * f.stride + j;
    const int64_t from = f.symbols ? f.symbols[at] : at;
    const S* gates_x =
        static_cast<const S*>(f.gates_x) + (from * kGates + kThis.first_gate) * H + j;
    T* others = static_cast<T*>(g.others) + r * kOthers * f.stride + j;
    T* kept = static_cast<T*>(g.kept) + r * kKept * f.stride + j;
    Step<C, V> v;
#pragma GCC unroll 8
    for (int gate = 0; gate < kThis.gates; ++gate) {
      v.gates_x[kThis.first_gate + gate] = load<kFull>(gates_x + gate * H, n);
      v.gates_h[kThis.first_gate + gate] =
          load(sums + gate * kUnits) + load(biases + gate * kUnits);
    }
    v.state[0] = load(static_cast<const T*>(g.h[next ^ 1]) + own);
#pragma GCC unroll 8
    for (int s = 0; s < kOthers; ++s)
      v.state[1 + s] = load(static_cast<const T*>(others) + s * f.stride);
#pragma GCC unroll 8
    for (int k = 0; k < C::kParameters; ++k) v.parameter[k] = load(parameters + k * kUnits);
    if constexpr (kStage > 0)
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k)
        if (in_set(C::kKept, k))
          v.saved[k] = load(static_cast<const T*>(kept) + place_in_set(C::kKept, k) * f.stride);
    C::template forward<kStage>(v);
    if (f.saved) {
      S* to = static_cast<S*>(f.saved) + at * C::kSaved * H + j;
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k)
        if (in_set(kThis.saves, k)) store<kFull>(to + k * H, v.saved[k], n);
    }
    if constexpr (kStage + 1 < kStages) {
      store(static_cast<T*>(g.operand) + own, v.operand);
#pragma GCC unroll 8
      for (int k = 0; k < C::kSaved; ++k)
        if (in_set(C::kKept, k)) store(kept + place_in_set(C::kKept, k) * f.stride, v.saved[k]);
    } else {
      store<kFull>(static_cast<S*>(f.output) + at * H + j, v.new_state[0], n);
      const bool clear = Moment::exists(m.after, g.length[r]) && is_reset(f, m.after, row);
      store(static_cast<T*>(g.h[next]) + own, clear ? V(T(0)) : v.new_state[0]);
#pragma GCC unroll 8
      for (int s = 0; s < kOthers; ++s) {
        if (f.c_sequence)
          store<kFull>(static_cast<S*>(f.c_sequence) + (at * kOthers + s) * H + j,
                       v.new_state[1 + s], n);
        store(others + s * f.stride, clear ? V(T(0)) : v.new_state[1 + s]);
      }
    }
  }

  template <int kStage>
  static void step(const Forward& f, const Slice& g, int64_t step, int64_t p0, int64_t p1) {
    constexpr int kStageGates = C::kStages[kStage].gates;
    constexpr int64_t kWidth = kStageGates * kUnits;
    alignas(64) T sums[kBlockRows * kWidth];
    const Moment m(f, step);
    const int64_t active = g.active[m.t], next = (step + 1) & 1;
    const T* from = static_cast<const T*>(kStage == 0 ? g.h[next ^ 1] : g.operand);
    for (int64_t p = p0; p < p1; ++p) {
      const T *weights = panel<kStage>(f, p), *biases = bias<kStage>(f, p);
      const T* parameters =
          static_cast<const T*>(f.packed_bias) + (panels(f) * kGates + p * C::kParameters) * kUnits;
      for (int64_t first = 0; first < active; first += kBlockRows) {
        const int64_t rows = active - first < kBlockRows ? active - first : kBlockRows;
        product<T, kStageGates * kVectors>(from + first * f.stride, f.stride, rows, weights,
                                           f.hidden, sums);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t j = p * kUnits + v * kLanes, n = f.hidden - j;
          if (n >= kLanes)
            for (int64_t r = 0; r < rows; ++r)
              units<true, kStage>(f, g, m, next, first + r, j, n, sums + r * kWidth + v * kLanes,
                                  biases + v * kLanes, parameters + v * kLanes);
          else if (n > 0)
            for (int64_t r = 0; r < rows; ++r)
              units<false, kStage>(f, g, m, next, first + r, j, n, sums + r * kWidth + v * kLanes,
                                   biases + v * kLanes, parameters + v * kLanes);
        }
      }
    }
  }

  // Rows that step t does not reach give zeros.
  static void zero_rows(const Forward& f, const Slice& g, int64_t t, int64_t j0, int64_t j1) {
    for (int64_t r = g.active[t]; r < g.rows; ++r) {
      const int64_t at = (f.first_row[t] + g.row[r]) * f.hidden;
      zero(static_cast<S*>(f.output) + at, j0, j1);
      for (int s = 0; f.c_sequence && s < kOthers; ++s)
        zero(static_cast<S*>(f.c_sequence) + at * kOthers + s * f.hidden, j0, j1);
      for (int k = 0; f.saved && k < C::kSaved; ++k)
        zero(static_cast<S*>(f.saved) + at * C::kSaved + k * f.hidden, j0, j1);
    }
  }

  static void run(const Forward& f, const Slice& g, int64_t phase, int64_t p0, int64_t p1) {
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
