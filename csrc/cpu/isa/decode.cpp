// The phases of greedy decoding, for pointwise cells: a layer, the projection with its arg-max, and
// the choice among the shares of the vocabulary. The build compiles this for every instruction set:
// SK_ISA is its name.
#include "cpu/decode/decode.h"

#include "cpu/products/few_rows.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

constexpr int64_t kSlots = 24;   // rows whose pre-activations lie on the stack together
constexpr int kWordVectors = 4;  // vectors of the vocabulary in a panel
constexpr double kPadding = -__builtin_inf();  // a logit that is never the largest

// A panel of a cell: kUnitVectors vectors of units with all their gates, [gate, unit].
template <typename C>
constexpr int kUnitVectors = C::kGates == 1 ? 4 : 1;

// Panels [p0, p1) of the rows g * size + unit of `weight`, as [depth, gates, units].
template <typename T>
void pack(const DecodeMatrix& m, int gates, int64_t size, int64_t units, T padding, int64_t p0,
          int64_t p1) {
  const T *weight = static_cast<const T*>(m.weight), *bias = static_cast<const T*>(m.bias);
  const int64_t width = gates * units;
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t first = p * units, present = size - first < units ? size - first : units;
    T* to_bias = static_cast<T*>(m.packed_bias) + p * width;
    for (int g = 0; g < gates; ++g)
      for (int64_t u = 0; u < units; ++u)
        to_bias[g * units + u] = u >= present      ? padding
                                 : bias == nullptr ? T(0)
                                                   : bias[g * size + first + u];
    if (m.packed == nullptr) continue;
    T* to = static_cast<T*>(m.packed) + p * width * m.depth;
    for (int g = 0; g < gates; ++g) {
      const T* from = weight + (g * size + first) * m.depth;
      for (int64_t k = 0; k < m.depth; ++k)
        for (int64_t u = 0; u < units; ++u)
          to[k * width + g * units + u] = u < present ? from[u * m.depth + k] : T(0);
    }
  }
}

// out [rows, kVectors * lanes] = a times panel p of the weights, plus bias. The bias comes last: a
// sum that began with a large one would round every product to its size.
template <typename T, int kGates, int kVectors>
void panel_product(const DecodeMatrix& m, int64_t size, int64_t p, const T* a, int64_t stride,
                   int64_t rows, T* out) {
  constexpr int kLanes = Vec<T>::kLanes;
  constexpr int64_t kWidth = kVectors * kLanes, kUnits = kWidth / kGates;
  const int64_t first = p * kUnits, present = size - first < kUnits ? size - first : kUnits;
  // The packed product adds; the other leaves out what lies past the last unit.
  if (m.packed != nullptr || present < kUnits) std::memset(out, 0, rows * kWidth * sizeof(T));
  if (m.packed != nullptr) {
    const T* panel = static_cast<const T*>(m.packed) + p * kWidth * m.depth;
    packed_product<T, kVectors>(a, stride, rows, panel, m.depth, out);
  } else {
    const T* weight = static_cast<const T*>(m.weight);
    for (int g = 0; g < kGates; ++g)
      dots(a, stride, rows, weight + (g * size + first) * m.depth, m.depth, present,
           out + g * kUnits, kWidth);
  }
  const T* bias = static_cast<const T*>(m.packed_bias) + p * kWidth;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < kWidth; v += kLanes)
      store(out + r * kWidth + v,
            load(static_cast<const T*>(out) + r * kWidth + v) + load(bias + v));
}

template <typename C, typename T>
void decode_layer(const Decode& d, int64_t l, int64_t p0, int64_t p1) {
  using V = Vec<T>;
  constexpr int kGates = C::kGates, kVectors = kGates * kUnitVectors<C>, kLanes = V::kLanes;
  constexpr int64_t kWidth = kVectors * kLanes, kUnits = kUnitVectors<C> * kLanes;
  alignas(64) T gates_x[kSlots * kWidth], gates_h[kSlots * kWidth];
  const T* h = static_cast<const T*>(d.h[l]);
  const T* below = l > 0 ? static_cast<const T*>(d.new_h[l - 1]) : nullptr;
  for (int64_t p = p0; p < p1; ++p) {
    if (l == 0) {
      for (int64_t first = 0; first < d.missing; first += kSlots) {
        const int64_t rows = d.missing - first < kSlots ? d.missing - first : kSlots;
        const T* input = static_cast<const T*>(d.input) + first * d.input_stride;
        panel_product<T, kGates, kVectors>(d.weight_ih[0], d.hidden, p, input, d.input_stride, rows,
                                           gates_x);
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(static_cast<T*>(d.missing_gates[first + r]) + p * kWidth,
                      gates_x + r * kWidth, kWidth * sizeof(T));
      }
    }
    for (int64_t first = 0; first < d.rows; first += kSlots) {
      const int64_t rows = d.rows - first < kSlots ? d.rows - first : kSlots;
      panel_product<T, kGates, kVectors>(d.weight_hh[l], d.hidden, p, h + first * d.stride,
                                         d.stride, rows, gates_h);
      if (l > 0)
        panel_product<T, kGates, kVectors>(d.weight_ih[l], d.hidden, p, below + first * d.stride,
                                           d.stride, rows, gates_x);
      for (int64_t r = 0; r < rows; ++r) {
        const T* from_x =
            l > 0 ? gates_x + r * kWidth : static_cast<const T*>(d.gates_x[first + r]) + p * kWidth;
        for (int64_t u = 0; u < kUnits; u += kLanes) {
          const int64_t at = (first + r) * d.stride + p * kUnits + u;
          Step<C, V> v;
          for (int g = 0; g < kGates; ++g) {
            v.gates_x[g] = load(from_x + g * kUnits + u);
            v.gates_h[g] = load(gates_h + r * kWidth + g * kUnits + u);
          }
          T* others =
              static_cast<T*>(d.c[l]) + (first + r) * d.stride * kOtherStates<C> + p * kUnits + u;
          v.state[0] = load(h + at);
          for (int s = 1; s < C::kStates; ++s)
            v.state[s] = load(static_cast<const T*>(others) + (s - 1) * d.stride);
          C::template forward<0>(v);
          store(static_cast<T*>(d.new_h[l]) + at, v.new_state[0]);
          for (int s = 1; s < C::kStates; ++s) store(others + (s - 1) * d.stride, v.new_state[s]);
        }
      }
    }
  }
}

// As torch.argmax: the first of equals, and a NaN above everything.
template <typename T>
SK_ALWAYS bool beats(T x, T best) {
  return x > best || (x != x && best == best);
}

template <typename T>
SK_ALWAYS Vec<T> larger(Vec<T> a, Vec<T> b) {
  return a.v > b.v ? a.v : b.v;
}

template <typename T>
SK_ALWAYS T largest_lane(Vec<T> x) {
  alignas(64) T lanes[Vec<T>::kLanes];
  store(static_cast<T*>(lanes), x);
#pragma GCC unroll 4
  for (int n = Vec<T>::kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lanes[i] = lanes[i] > lanes[i + n] ? lanes[i] : lanes[i + n];
  return lanes[0];
}

template <typename T>
SK_ALWAYS T lane_sum(Vec<T> x) {
  fold<T, 1>(&x);
  return x.v[0];
}

template <typename T>
void decode_project(const Decode& d, int64_t share, int64_t p0, int64_t p1) {
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes;
  constexpr int64_t kWidth = kWordVectors * kLanes;
  alignas(64) T logits[kSlots * kWidth];
  const T* h = static_cast<const T*>(d.new_h[d.layers - 1]);
  T* best = static_cast<T*>(d.best) + share * d.capacity;
  T* sum = static_cast<T*>(d.sum) + share * d.capacity;
  int64_t* word = d.word + share * d.capacity;
  for (int64_t s = 0; s < d.rows; ++s) best[s] = T(kPadding), word[s] = p0 * kWidth, sum[s] = T(0);
  for (int64_t p = p0; p < p1; ++p)
    for (int64_t first = 0; first < d.rows; first += kSlots) {
      const int64_t rows = d.rows - first < kSlots ? d.rows - first : kSlots;
      panel_product<T, 1, kWordVectors>(d.projection, d.vocabulary, p, h + first * d.stride,
                                        d.stride, rows, logits);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t s = first + r;
        const T* row = logits + r * kWidth;
        V x[kWordVectors];
        for (int v = 0; v < kWordVectors; ++v) x[v] = load(row + v * kLanes);
        const V top = larger(larger(x[0], x[1]), larger(x[2], x[3]));
        // Comparisons drop a NaN, a sum keeps it; an infinity only takes the same careful way.
        const V trace = (x[0] + x[1]) + (x[2] + x[3]);
        const T trace_sum = lane_sum(trace - trace);
        const T before = best[s];
        if (largest_lane(top) > before || trace_sum != trace_sum)
          for (int64_t i = 0; i < kWidth; ++i)
            if (beats(row[i], best[s])) best[s] = row[i], word[s] = p * kWidth + i;
        if (!d.scores || best[s] == T(kPadding)) continue;
        const V high(best[s]);
        V total = exp_(x[0] - high);
        for (int v = 1; v < kWordVectors; ++v) total = total + exp_(x[v] - high);
        // exp_ stops at -87: what was nothing before stays nothing.
        const T scale = sum[s] == T(0) ? T(0) : exp_(V(before) - high).v[0];
        sum[s] = sum[s] * scale + lane_sum(total);
      }
    }
}

template <typename T>
int64_t decode_choose(const Decode& d, int64_t shares, int64_t slot, double* log_prob) {
  const T *best = static_cast<const T*>(d.best) + slot, *sum = static_cast<const T*>(d.sum) + slot;
  int64_t winner = 0;
  for (int64_t k = 1; k < shares; ++k)
    if (beats(best[k * d.capacity], best[winner * d.capacity])) winner = k;
  if (d.scores) {
    // log p = logit - log sum exp(logits), and the winner's logit is the reference of the sum.
    const T high = best[winner * d.capacity];
    double total = 0;
    for (int64_t k = 0; k < shares; ++k)
      if (sum[k * d.capacity] != T(0))
        total += sum[k * d.capacity] * std::exp(double(best[k * d.capacity]) - double(high));
    // Without a finite largest logit there is no probability: NaN, as log_softmax has it.
    *log_prob = total > 0 ? -std::log(total) : double(high) - double(high);
  }
  return d.word[winner * d.capacity + slot];
}

template <typename C, typename T>
void pack_cell(const DecodeMatrix& m, int64_t hidden, int64_t p0, int64_t p1) {
  pack<T>(m, C::kGates, hidden, kUnitVectors<C> * Vec<T>::kLanes, T(0), p0, p1);
}

template <typename T>
void pack_projection(const DecodeMatrix& m, int64_t vocabulary, int64_t p0, int64_t p1) {
  pack<T>(m, 1, vocabulary, kWordVectors * Vec<T>::kLanes, T(kPadding), p0, p1);
}

template <typename C, typename T>
const DecodeKernels& table() {
  static constexpr DecodeKernels kTable = {sizeof(T),
                                           Vec<T>::kLanes,
                                           kUnitVectors<C> * Vec<T>::kLanes,
                                           kWordVectors * Vec<T>::kLanes,
                                           pack_cell<C, T>,
                                           pack_projection<T>,
                                           decode_layer<C, T>,
                                           decode_project<T>,
                                           decode_choose<T>};
  return kTable;
}

template <typename T>
const DecodeKernels& table(Cell cell) {
  return *visit(cell, [](auto type) -> const DecodeKernels* {
    using C = typename decltype(type)::type;
    if constexpr (kPointwise<C>) return &table<C, T>();
    return nullptr;
  });
}

const DecodeKernels& decode_kernels(Cell cell, Dtype dtype) {
  return dtype == Dtype::kFloat64 ? table<double>(cell) : table<float>(cell);
}

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
