// One pointwise step of a cell, forward and backward, for every cell but gru_reset_before.
// A thread owns V neighbouring hidden units of one row (V = 4, or 1 where sizes do not divide).
// Nothing stays on chip: all state passes through memory once.
// There is no synchronisation; launches on one stream follow each other.
// bench/results/<device>/cells.json will compare it with torch's own fused cells.
//
// Limitations: contiguous tensors; at most 2^31 blocks of 256 threads.
#include "elements.h"

namespace seqkernels {
namespace {

template <typename C, typename scalar_t, int V>
__global__ void __launch_bounds__(256) cell_forward_kernel(CellForwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;
  const Place at = own_place<V>(a.rows, a.hidden);
  if (!at.valid) return;
  const int64_t state = at.row * a.hidden + at.unit;
  const bool alive = a.lengths == nullptr || a.step < a.lengths[at.row];
  const bool reset = alive && a.reset != nullptr && a.reset[at.row];

  acc_t h[V], c[V];
  if (a.h != nullptr) {
    load<V, scalar_t>(h, a.h, state);
    load<V, scalar_t>(c, a.c, state);
  } else {
    load<V, acc_t>(h, a.carry_h, state);
    load<V, acc_t>(c, a.carry_c, state);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (reset) h[v] = c[v] = acc_t(0);
  }
  acc_t out_h[V] = {}, out_c[V] = {}, saved[kSaved][V] = {};
  if (alive) {
    acc_t x[C::kGates][V], g[C::kGates][V];
    const int64_t gate = at.row * C::kGates * a.hidden + at.unit;
#pragma unroll
    for (int k = 0; k < C::kGates; ++k) {
      acc_t bias[V];
      load<V, scalar_t>(x[k], a.gates_x, gate + k * a.hidden);
      load<V, scalar_t>(g[k], reset ? nullptr : a.gates_h, gate + k * a.hidden);
      load<V, scalar_t>(bias, a.bias_hh, k * a.hidden + at.unit);
#pragma unroll
      for (int v = 0; v < V; ++v) g[k][v] += bias[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      acc_t xv[C::kGates], gv[C::kGates], sv[kSaved];
#pragma unroll
      for (int k = 0; k < C::kGates; ++k) xv[k] = x[k][v], gv[k] = g[k][v];
      C::forward(xv, gv, h[v], c[v], &out_h[v], &out_c[v], sv);
#pragma unroll
      for (int k = 0; k < C::kSaved; ++k) saved[k][v] = sv[k];
      h[v] = out_h[v];
      c[v] = out_c[v];
    }
  }
  store<V, acc_t>(a.carry_h, state, h);
  store<V, scalar_t>(a.h_next, state, h);
  store<V, scalar_t>(a.output, state, out_h);
  if constexpr (C::kStates == 2) {
    store<V, acc_t>(a.carry_c, state, c);
    store<V, scalar_t>(a.c_sequence, state, out_c);
  }
  if (a.saved != nullptr) {
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      store<V, scalar_t>(a.saved, (at.row * C::kSaved + k) * a.hidden + at.unit, saved[k]);
    }
  }
}

template <typename C, typename scalar_t, int V>
__global__ void __launch_bounds__(256) cell_backward_kernel(CellBackwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  constexpr int kSaved = C::kSaved > 0 ? C::kSaved : 1;
  const Place at = own_place<V>(a.rows, a.hidden);
  if (!at.valid) return;
  const int64_t state = at.row * a.hidden + at.unit;
  const bool alive = a.lengths == nullptr || a.step < a.lengths[at.row];
  const bool reset = alive && a.reset != nullptr && a.reset[at.row];
  const bool first = at.row >= a.previous_rows ||
                     (a.first_at_end && a.lengths != nullptr && a.step + 1 >= a.lengths[at.row]);
  const bool dropped = a.recurrent_reset != nullptr && a.recurrent_reset[at.row];

  acc_t grad_h[V], grad_c[V], recurrent[V];
  load<V, acc_t>(grad_h, a.carry_h, state);
  load<V, acc_t>(grad_c, a.carry_c, state);
  load<V, scalar_t>(recurrent, dropped ? nullptr : a.recurrent, state);
#pragma unroll
  for (int v = 0; v < V; ++v) grad_h[v] += recurrent[v];

  acc_t gates[C::kGates][V] = {}, hidden_n[V] = {};
  if (alive) {
    acc_t saved[kSaved][V] = {}, from_h[V], from_c[V], h[V], c[V], new_h[V], new_c[V];
    load<V, scalar_t>(from_h, a.grad_output, state);
    load<V, scalar_t>(from_c, a.grad_c_sequence, state);
    load<V, scalar_t>(h, reset ? nullptr : first ? a.first_h : a.previous_h, state);
    load<V, scalar_t>(c, reset ? nullptr : first ? a.first_c : a.previous_c, state);
    load<V, scalar_t>(new_h, a.new_h, state);
    load<V, scalar_t>(new_c, a.new_c, state);
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      load<V, scalar_t>(saved[k], a.saved, (at.row * C::kSaved + k) * a.hidden + at.unit);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      acc_t sv[kSaved], gv[C::kGates], hn = acc_t(0), previous_h, previous_c = acc_t(0);
#pragma unroll
      for (int k = 0; k < C::kSaved; ++k) sv[k] = saved[k][v];
      C::backward(sv, h[v], c[v], new_h[v], new_c[v], grad_h[v] + from_h[v], grad_c[v] + from_c[v],
                  gv, &hn, &previous_h, &previous_c);
#pragma unroll
      for (int k = 0; k < C::kGates; ++k) gates[k][v] = gv[k];
      hidden_n[v] = hn;
      grad_h[v] = previous_h;
      grad_c[v] = previous_c;
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (reset) grad_h[v] = grad_c[v] = acc_t(0);
  }
  store<V, acc_t>(a.carry_h, state, grad_h);
  store<V, scalar_t>(a.grad_h, state, grad_h);
  if constexpr (C::kStates == 2) {
    store<V, acc_t>(a.carry_c, state, grad_c);
    store<V, scalar_t>(a.grad_c, state, grad_c);
  }
  const int64_t gate = at.row * C::kGates * a.hidden + at.unit;
#pragma unroll
  for (int k = 0; k < C::kGates; ++k) {
    const bool last = C::kHidden > 0 && k == C::kGates - 1;
    store<V, scalar_t>(a.grad_gates_x, gate + k * a.hidden, gates[k]);
    store<V, scalar_t>(a.grad_gates_h, gate + k * a.hidden, last ? hidden_n : gates[k]);
  }
  if constexpr (C::kHidden > 0) store<V, scalar_t>(a.grad_gates_hn, state, hidden_n);
}

template <typename C, typename scalar_t>
int forward(const CellForwardArgs& a, void* stream) {
  constexpr int V = 4;
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (a.hidden % V == 0 &&
        aligned_to(V * sizeof(scalar_t), {a.gates_x, a.gates_h, a.bias_hh, a.h, a.c, a.output,
                                          a.c_sequence, a.saved, a.h_next}) &&
        aligned_to(V * sizeof(float), {a.carry_h, a.carry_c})) {
      return launch_elements<V>(cell_forward_kernel<C, scalar_t, V>, a.rows, a.hidden, a, stream);
    }
  }
  return launch_elements<1>(cell_forward_kernel<C, scalar_t, 1>, a.rows, a.hidden, a, stream);
}

template <typename C, typename scalar_t>
int backward(const CellBackwardArgs& a, void* stream) {
  constexpr int V = 4;
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (a.hidden % V == 0 &&
        aligned_to(V * sizeof(scalar_t),
                   {a.grad_output, a.grad_c_sequence, a.recurrent, a.previous_h, a.previous_c,
                    a.first_h, a.first_c, a.new_h, a.new_c, a.saved, a.grad_gates_x, a.grad_gates_h,
                    a.grad_gates_hn, a.grad_h, a.grad_c}) &&
        aligned_to(V * sizeof(float), {a.carry_h, a.carry_c})) {
      return launch_elements<V>(cell_backward_kernel<C, scalar_t, V>, a.rows, a.hidden, a, stream);
    }
  }
  return launch_elements<1>(cell_backward_kernel<C, scalar_t, 1>, a.rows, a.hidden, a, stream);
}

template <typename F>
int for_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::kLstm:
      return f(Lstm());
    case Cell::kGru:
      return f(Gru());
    case Cell::kRnnTanh:
      return f(RnnTanh());
    case Cell::kRnnRelu:
      return f(RnnRelu());
    case Cell::kGruResetBefore:
      break;
  }
  return 1;  // cudaErrorInvalidValue
}

}  // namespace

int launch_cell_forward(Cell cell, Dtype dtype, const CellForwardArgs& args, void* stream) {
  return for_cell(cell, [&](auto c) {
    return for_dtype(dtype,
                     [&](auto s) { return forward<decltype(c), decltype(s)>(args, stream); });
  });
}
int launch_cell_backward(Cell cell, Dtype dtype, const CellBackwardArgs& args, void* stream) {
  return for_cell(cell, [&](auto c) {
    return for_dtype(dtype,
                     [&](auto s) { return backward<decltype(c), decltype(s)>(args, stream); });
  });
}

}  // namespace seqkernels
