// The two pointwise halves of a step of gru_reset_before, forward and backward; and conversions
// between storage and carry.
// A thread owns one hidden unit of one row.
// Nothing stays on chip: all state passes through memory once.
// There is no synchronisation; launches on one stream follow each other.
// bench/results/<device>/standard.json: the stepwise schedule of gru_reset_before, which no other
// library has.
//
// Limitations: contiguous tensors; not vectorised.
#include "elements.h"

namespace seqkernels {
namespace {

using R = GruResetBefore;

template <typename acc_t>
struct Unit {
  int64_t row, unit, state, gate, saved, hidden;
  bool alive, reset;
};

template <typename acc_t, typename Args>
SK_DEVICE Unit<acc_t> own_unit(const Args& a, const Place& at) {
  const bool alive = a.lengths == nullptr || a.step < a.lengths[at.row];
  return {at.row,
          at.unit,
          at.row * a.hidden + at.unit,
          at.row * R::kGates * a.hidden + at.unit,
          at.row * R::kSaved * a.hidden + at.unit,
          a.hidden,
          alive,
          alive && a.reset != nullptr && a.reset[at.row]};
}

template <typename acc_t, typename scalar_t>
SK_DEVICE acc_t get(const void* p, int64_t i) {
  return p == nullptr ? acc_t(0) : widen<acc_t>(static_cast<const scalar_t*>(p)[i]);
}
template <typename scalar_t, typename acc_t>
SK_DEVICE void put(void* p, int64_t i, acc_t x) {
  if (p != nullptr) static_cast<scalar_t*>(p)[i] = narrow<scalar_t>(x);
}

template <typename scalar_t>
__global__ void __launch_bounds__(256) reset_forward_kernel(CellForwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(a.rows, a.hidden);
  if (!at.valid) return;
  const Unit<acc_t> u = own_unit<acc_t>(a, at);
  const acc_t h = u.reset ? acc_t(0) : get<acc_t, acc_t>(a.carry_h, u.state);
  acc_t saved[R::kSaved] = {}, reset_h = acc_t(0);
  if (u.alive) {
    acc_t x[2], g[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const void* gates_h = u.reset ? nullptr : a.gates_h;
      x[k] = get<acc_t, scalar_t>(a.gates_x, u.gate + k * u.hidden);
      g[k] = get<acc_t, scalar_t>(gates_h, (u.row * 2 + k) * u.hidden + u.unit) +
             get<acc_t, scalar_t>(a.bias_hh, k * u.hidden + u.unit);
    }
    reset_h = R::reset(x, g, h, saved);
  }
  put<acc_t>(a.update, u.state, saved[1]);
  put<scalar_t>(a.reset_h, u.state, reset_h);
  put<scalar_t>(a.saved, u.saved, saved[0]);
  put<scalar_t>(a.saved, u.saved + u.hidden, saved[1]);
}

template <typename scalar_t>
__global__ void __launch_bounds__(256) update_forward_kernel(CellForwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(a.rows, a.hidden);
  if (!at.valid) return;
  const Unit<acc_t> u = own_unit<acc_t>(a, at);
  acc_t h = u.reset ? acc_t(0) : get<acc_t, acc_t>(a.carry_h, u.state);
  acc_t saved[R::kSaved] = {}, out = acc_t(0);
  if (u.alive) {
    saved[1] = get<acc_t, acc_t>(a.update, u.state);
    const acc_t x = get<acc_t, scalar_t>(a.gates_x, u.gate + 2 * u.hidden);
    const acc_t g = get<acc_t, scalar_t>(a.gates_h, u.state) +
                    get<acc_t, scalar_t>(a.bias_hh, 2 * u.hidden + u.unit);
    h = out = R::update(x, g, h, saved);
  }
  put<acc_t>(a.carry_h, u.state, h);
  put<scalar_t>(a.h_next, u.state, h);
  put<scalar_t>(a.output, u.state, out);
  put<scalar_t>(a.saved, u.saved + 2 * u.hidden, saved[2]);
}

template <typename acc_t, typename scalar_t>
SK_DEVICE acc_t previous_h(const CellBackwardArgs& a, const Unit<acc_t>& u) {
  if (u.reset) return acc_t(0);
  const bool first = u.row >= a.previous_rows ||
                     (a.first_at_end && a.lengths != nullptr && a.step + 1 >= a.lengths[u.row]);
  return get<acc_t, scalar_t>(first ? a.first_h : a.previous_h, u.state);
}

template <typename scalar_t>
__global__ void __launch_bounds__(256) update_backward_kernel(CellBackwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(a.rows, a.hidden);
  if (!at.valid) return;
  const Unit<acc_t> u = own_unit<acc_t>(a, at);
  const bool dropped = a.recurrent_reset != nullptr && a.recurrent_reset[u.row];
  acc_t grad_h = get<acc_t, acc_t>(a.carry_h, u.state) +
                 get<acc_t, scalar_t>(dropped ? nullptr : a.recurrent, u.state);
  acc_t gates[R::kGates] = {};
  if (u.alive) {
    acc_t saved[R::kSaved];
#pragma unroll
    for (int k = 0; k < R::kSaved; ++k) {
      saved[k] = get<acc_t, scalar_t>(a.saved, u.saved + k * u.hidden);
    }
    acc_t previous;
    R::update_backward(saved, previous_h<acc_t, scalar_t>(a, u),
                       grad_h + get<acc_t, scalar_t>(a.grad_output, u.state), gates, &previous);
    grad_h = previous;
  }
  put<acc_t>(a.carry_h, u.state, u.reset ? acc_t(0) : grad_h);
  put<scalar_t>(a.grad_gates_x, u.gate + u.hidden, gates[1]);
  put<scalar_t>(a.grad_gates_x, u.gate + 2 * u.hidden, gates[2]);
}

template <typename scalar_t>
__global__ void __launch_bounds__(256) reset_backward_kernel(CellBackwardArgs a) {
  using acc_t = carry_of<scalar_t>;
  const Place at = own_place<1>(a.rows, a.hidden);
  if (!at.valid) return;
  const Unit<acc_t> u = own_unit<acc_t>(a, at);
  acc_t grad_h = get<acc_t, acc_t>(a.carry_h, u.state), gates[R::kGates] = {};
  if (u.alive) {
    const acc_t saved[1] = {get<acc_t, scalar_t>(a.saved, u.saved)};
    R::reset_backward(saved, previous_h<acc_t, scalar_t>(a, u),
                      get<acc_t, scalar_t>(a.grad_reset_h, u.state), gates, &grad_h);
  }
  put<acc_t>(a.carry_h, u.state, u.reset ? acc_t(0) : grad_h);
  put<scalar_t>(a.grad_gates_x, u.gate, gates[0]);
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
  if (at.valid) put<acc_t>(a.carry, at.unit, get<acc_t, scalar_t>(a.from, at.unit));
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
  put<scalar_t>(
      a.to, i,
      get<acc_t, acc_t>(a.carry, i) + get<acc_t, scalar_t>(dropped ? nullptr : a.recurrent, i));
}

}  // namespace

int launch_reset_forward(Dtype dtype, const CellForwardArgs& a, void* stream) {
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(reset_forward_kernel<decltype(s)>, a.rows, a.hidden, a, stream);
  });
}
int launch_update_forward(Dtype dtype, const CellForwardArgs& a, void* stream) {
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(update_forward_kernel<decltype(s)>, a.rows, a.hidden, a, stream);
  });
}
int launch_update_backward(Dtype dtype, const CellBackwardArgs& a, void* stream) {
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(update_backward_kernel<decltype(s)>, a.rows, a.hidden, a, stream);
  });
}
int launch_reset_backward(Dtype dtype, const CellBackwardArgs& a, void* stream) {
  return for_dtype(dtype, [&](auto s) {
    return launch_elements<1>(reset_backward_kernel<decltype(s)>, a.rows, a.hidden, a, stream);
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
