// The pointwise part of one stage of a step, forward and backward, for every cell; and conversions
// between storage and carry.
// A thread owns V neighbouring hidden units of one row (V = 4, or 1 where sizes do not divide).
// Nothing stays on chip: all state passes through memory once.
// There is no synchronisation; launches on one stream follow each other.
// bench/results/<device>/cells.json will compare it with torch's own fused cells.
//
// Limitations: contiguous tensors; at most 2^31 blocks of 256 threads.
#include "cuda/stepwise/elements.h"

namespace seqkernels {
namespace {

// What a thread knows of its row.
template <typename Args>
SK_DEVICE bool is_alive(const Args& a, const Place& at) {
  return a.lengths == nullptr || a.step < a.lengths[at.row];
}
// Where vector `k` of `count` that stand side by side in a row lies.
SK_DEVICE int64_t vector_at(const Place& at, int64_t hidden, int count, int k) {
  return (at.row * count + k) * hidden + at.unit;
}

template <typename C, int kStage, typename scalar_t, int V>
__global__ void __launch_bounds__(256) cell_forward_kernel(CellForwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  using S = Step<C, acc_t>;
  constexpr Stage kOwn = C::kStages[kStage];
  constexpr bool kLast = kStage + 1 == kStageCount<C>;
  constexpr int kKept = size_of_set(C::kKept);
  const Place at = own_place<V>(a.rows, a.hidden);
  if (!at.valid) return;
  const bool alive = is_alive(a, at);
  const bool reset = alive && a.reset != nullptr && a.reset[at.row];

  S step[V] = {};
#pragma unroll
  for (int j = 0; j < C::kStates; ++j) {
    const auto state = [&](S& s) -> acc_t& { return s.state[j]; };
    const int64_t i = state_at<C>(at.row, j, a.hidden, at.unit);
    if (a.h != nullptr) {
      load_each<scalar_t>(step, state, reset ? nullptr : j == 0 ? a.h : a.c, i);
    } else {
      load_each<acc_t>(step, state, reset ? nullptr : j == 0 ? a.carry_h : a.carry_c, i);
    }
  }
  if (alive) {
#pragma unroll
    for (int k = 0; k < C::kGates; ++k) {
      const auto gate_x = [&](S& s) -> acc_t& { return s.gates_x[k]; };
      load_each<scalar_t>(step, gate_x, a.gates_x, vector_at(at, a.hidden, C::kGates, k));
    }
    const auto take_product = [&](auto number) {
      constexpr int q = decltype(number)::value;
      constexpr Stage kOf = C::kStages[q];
#pragma unroll
      for (int k = 0; k < kOf.gates; ++k) {
        const int gate = kOf.first_gate + k;
        const auto gate_h = [&](S& s) -> acc_t& { return s.gates_h[gate]; };
        // Of a zero state the product is zero.
        const void* from = q == 0 && reset ? nullptr : a.gates_h[q];
        load_each<scalar_t>(step, gate_h, from, vector_at(at, a.hidden, kOf.gates, k));
        acc_t bias[V];
        load<V, scalar_t>(bias, a.bias_hh, gate * a.hidden + at.unit);
#pragma unroll
        for (int v = 0; v < V; ++v) step[v].gates_h[gate] += bias[v];
      }
    };
    take_product(std::integral_constant<int, 0>());
    if (kStage > 0) take_product(std::integral_constant<int, kStage>());
#pragma unroll
    for (int k = 0; k < C::kParameters; ++k) {
      const auto parameter = [&](S& s) -> acc_t& { return s.parameter[k]; };
      load_each<scalar_t>(step, parameter, a.bias_hh, (C::kGates + k) * a.hidden + at.unit);
    }
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      if (kStage == 0 || !in_set(C::kKept, k)) continue;
      const auto kept = [&](S& s) -> acc_t& { return s.saved[k]; };
      load_each<acc_t>(step, kept, a.kept,
                       vector_at(at, a.hidden, kKept, place_in_set(C::kKept, k)));
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      C::template forward<kStage>(step[v]);
#pragma unroll
      for (int j = 0; j < C::kStates; ++j) {
        if (kLast) step[v].state[j] = step[v].new_state[j];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < C::kSaved; ++k) {
    const auto saved = [&](const S& s) { return s.saved[k]; };
    if (!kLast && in_set(C::kKept, k)) {
      store_each<acc_t>(a.kept, vector_at(at, a.hidden, kKept, place_in_set(C::kKept, k)), step,
                        saved);
    }
    if (in_set(kOwn.saves, k)) {
      store_each<scalar_t>(a.saved, vector_at(at, a.hidden, C::kSaved, k), step, saved);
    }
  }
  if constexpr (!kLast) {
    store_each<scalar_t>(a.operand, vector_at(at, a.hidden, 1, 0), step,
                         [](const S& s) { return s.operand; });
  } else {
#pragma unroll
    for (int j = 0; j < C::kStates; ++j) {
      const auto state = [&](const S& s) { return s.state[j]; };
      const auto new_state = [&](const S& s) { return s.new_state[j]; };
      const int64_t i = state_at<C>(at.row, j, a.hidden, at.unit);
      store_each<acc_t>(j == 0 ? a.carry_h : a.carry_c, i, step, state);
      if (j == 0) store_each<scalar_t>(a.h_next, i, step, state);
      store_each<scalar_t>(j == 0 ? a.output : a.c_sequence, i, step, new_state);
    }
  }
}

template <typename C, int kStage, typename scalar_t, int V>
__global__ void __launch_bounds__(256) cell_backward_kernel(CellBackwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  using S = StepGrad<C, acc_t>;
  constexpr Stage kOwn = C::kStages[kStage];
  constexpr bool kBegins = kStage + 1 == kStageCount<C>, kEnds = kStage == 0;
  const Place at = own_place<V>(a.rows, a.hidden);
  if (!at.valid) return;
  const bool alive = is_alive(a, at);
  const bool reset = alive && a.reset != nullptr && a.reset[at.row];
  const bool first = at.row >= a.previous_rows ||
                     (a.first_at_end && a.lengths != nullptr && a.step + 1 >= a.lengths[at.row]);
  const bool dropped = a.recurrent_reset != nullptr && a.recurrent_reset[at.row];
  const auto separate_at = [&](int column) {
    return vector_at(at, a.hidden, kSeparateColumns<C>, column);
  };
  constexpr int kFirstParameter = size_of_set(C::kSeparate);

  S step[V] = {};
#pragma unroll
  for (int j = 0; j < C::kStates; ++j) {
    const auto grad = [&](S& s) -> acc_t& { return s.grad_state[j]; };
    load_each<acc_t>(step, grad, j == 0 ? a.carry_h : a.carry_c,
                     state_at<C>(at.row, j, a.hidden, at.unit));
  }
  if (kBegins) {
    acc_t recurrent[V];
    load<V, scalar_t>(recurrent, dropped ? nullptr : a.recurrent, vector_at(at, a.hidden, 1, 0));
#pragma unroll
    for (int v = 0; v < V; ++v) step[v].grad_state[0] += recurrent[v];
  }
  if (alive) {
#pragma unroll
    for (int j = 0; j < C::kStates; ++j) {
      const int64_t i = state_at<C>(at.row, j, a.hidden, at.unit);
      if (in_set(C::kReadsState, j)) {
        const void* before =
            first ? (j == 0 ? a.first_h : a.first_c) : (j == 0 ? a.previous_h : a.previous_c);
        const auto state = [&](S& s) -> acc_t& { return s.state[j]; };
        load_each<scalar_t>(step, state, reset ? nullptr : before, i);
      }
      if (in_set(C::kReadsNewState, j)) {
        const auto new_state = [&](S& s) -> acc_t& { return s.new_state[j]; };
        load_each<scalar_t>(step, new_state, j == 0 ? a.new_h : a.new_c, i);
      }
      if (kBegins) {
        acc_t given[V];
        load<V, scalar_t>(given, j == 0 ? a.grad_output : a.grad_c_sequence, i);
#pragma unroll
        for (int v = 0; v < V; ++v) step[v].grad_new_state[j] = step[v].grad_state[j] + given[v];
      }
    }
    if (!kBegins) {
      const auto grad = [](S& s) -> acc_t& { return s.grad_operand; };
      load_each<scalar_t>(step, grad, a.grad_operand, vector_at(at, a.hidden, 1, 0));
    }
#pragma unroll
    for (int k = 0; k < C::kSaved; ++k) {
      const auto saved = [&](S& s) -> acc_t& { return s.saved[k]; };
      load_each<scalar_t>(step, saved, a.saved, vector_at(at, a.hidden, C::kSaved, k));
    }
#pragma unroll
    for (int k = 0; k < C::kParameters; ++k) {
      const auto parameter = [&](S& s) -> acc_t& { return s.parameter[k]; };
      load_each<scalar_t>(step, parameter, a.bias_hh, (C::kGates + k) * a.hidden + at.unit);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) C::template backward<kStage>(step[v]);
  }
#pragma unroll
  for (int j = 0; j < C::kStates; ++j) {
    const int64_t i = state_at<C>(at.row, j, a.hidden, at.unit);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (kEnds && reset) step[v].grad_state[j] = acc_t(0);
    }
    const auto grad = [&](const S& s) { return s.grad_state[j]; };
    store_each<acc_t>(j == 0 ? a.carry_h : a.carry_c, i, step, grad);
    if (kEnds) store_each<scalar_t>(j == 0 ? a.grad_h : a.grad_c, i, step, grad);
  }
#pragma unroll
  for (int k = 0; k < C::kGates; ++k) {
    if (!in_set(kOwn.grads, k)) continue;
    const int64_t i = vector_at(at, a.hidden, C::kGates, k);
    const auto through = [&](const S& s) { return s.through(k); };
    store_each<scalar_t>(a.grad_gates_x, i, step, [&](const S& s) { return s.grad_gates_x[k]; });
    store_each<scalar_t>(a.grad_gates_h, i, step, through);
    if (in_set(C::kSeparate, k)) {
      store_each<scalar_t>(a.grad_separate, separate_at(place_in_set(C::kSeparate, k)), step,
                           through);
    }
  }
#pragma unroll
  for (int k = 0; k < C::kParameters; ++k) {
    if (!in_set(kOwn.parameters, k)) continue;
    store_each<scalar_t>(a.grad_separate, separate_at(kFirstParameter + k), step,
                         [&](const S& s) { return s.grad_parameter[k]; });
  }
}

template <typename C, int kStage, typename scalar_t>
int forward(const CellForwardArgs& a, void* stream) {
  constexpr int V = 4;
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (a.hidden % V == 0 &&
        aligned_to(V * sizeof(scalar_t),
                   {a.gates_x, a.gates_h[0], a.gates_h[1], a.bias_hh, a.h, a.c, a.output,
                    a.c_sequence, a.saved, a.h_next, a.operand}) &&
        aligned_to(V * sizeof(float), {a.carry_h, a.carry_c, a.kept})) {
      return launch_elements<V>(cell_forward_kernel<C, kStage, scalar_t, V>, a.rows, a.hidden, a,
                                stream);
    }
  }
  return launch_elements<1>(cell_forward_kernel<C, kStage, scalar_t, 1>, a.rows, a.hidden, a,
                            stream);
}

template <typename C, int kStage, typename scalar_t>
int backward(const CellBackwardArgs& a, void* stream) {
  constexpr int V = 4;
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (a.hidden % V == 0 &&
        aligned_to(V * sizeof(scalar_t),
                   {a.grad_output, a.grad_c_sequence, a.recurrent, a.bias_hh, a.previous_h,
                    a.previous_c, a.first_h, a.first_c, a.new_h, a.new_c, a.saved, a.grad_gates_x,
                    a.grad_gates_h, a.grad_separate, a.grad_h, a.grad_c, a.grad_operand}) &&
        aligned_to(V * sizeof(float), {a.carry_h, a.carry_c})) {
      return launch_elements<V>(cell_backward_kernel<C, kStage, scalar_t, V>, a.rows, a.hidden, a,
                                stream);
    }
  }
  return launch_elements<1>(cell_backward_kernel<C, kStage, scalar_t, 1>, a.rows, a.hidden, a,
                            stream);
}

// f(CellType<C>(), stage as a type, scalar).
template <typename F>
int for_stage(Cell cell, int stage, Dtype dtype, F f) {
  return visit(cell, [&](auto type) {
    constexpr int kLast = kStageCount<typename decltype(type)::type> - 1;
    return for_dtype(dtype, [&](auto s) {
      return stage == 0 ? f(type, std::integral_constant<int, 0>(), s)
                        : f(type, std::integral_constant<int, kLast>(), s);
    });
  });
}

struct WidenArgs {
  void* carry;
  const void* from;
  int64_t count;
};
template <typename scalar_t>
__global__ void __launch_bounds__(256) widen_kernel(WidenArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(1, a.count);
  if (!at.valid) return;
  acc_t x[1];
  load<1, scalar_t>(x, a.from, at.unit);
  store<1, acc_t>(a.carry, at.unit, x);
}

struct NarrowArgs {
  void* to;
  const void *carry, *recurrent;
  const bool* reset;
  int64_t rows, hidden;
};
template <typename scalar_t>
__global__ void __launch_bounds__(256) narrow_kernel(NarrowArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(a.rows, a.hidden);
  if (!at.valid) return;
  const int64_t i = at.row * a.hidden + at.unit;
  const bool dropped = a.reset != nullptr && a.reset[at.row];
  acc_t x[1], recurrent[1];
  load<1, acc_t>(x, a.carry, i);
  load<1, scalar_t>(recurrent, dropped ? nullptr : a.recurrent, i);
  x[0] += recurrent[0];
  store<1, scalar_t>(a.to, i, x);
}

}  // namespace

int launch_cell_forward(Cell cell, int stage, Dtype dtype, const CellForwardArgs& a, void* stream) {
  return for_stage(cell, stage, dtype, [&](auto type, auto number, auto s) {
    return forward<typename decltype(type)::type, decltype(number)::value, decltype(s)>(a, stream);
  });
}
int launch_cell_backward(Cell cell, int stage, Dtype dtype, const CellBackwardArgs& a,
                         void* stream) {
  return for_stage(cell, stage, dtype, [&](auto type, auto number, auto s) {
    return backward<typename decltype(type)::type, decltype(number)::value, decltype(s)>(a, stream);
  });
}
int launch_widen(Dtype dtype, void* carry, const void* from, int64_t count, void* stream) {
  const WidenArgs a{carry, from, count};
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(widen_kernel<decltype(s)>, 1, count, a, stream);
  });
}
int launch_narrow(Dtype dtype, void* to, const void* carry, const void* recurrent,
                  const bool* reset, int64_t rows, int64_t hidden, void* stream) {
  const NarrowArgs a{to, carry, recurrent, reset, rows, hidden};
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(narrow_kernel<decltype(s)>, rows, hidden, a, stream);
  });
}

}  // namespace seqkernels
