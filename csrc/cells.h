// The pointwise mathematics of every cell, written once for host, vector and device code.
//
// A cell maps pre-activations and the previous state of ONE hidden unit to its new state. It knows
// nothing of batches, time, tensors, threads or storage types. `T` is float or double, or a class
// of several lanes that has the usual operators, a constructor that broadcasts a scalar, and
// overloads of `exp_`, `tanh_` and `relu_` in its own namespace (found by argument-dependent
// lookup).
//
// Gates stand in torch's order. Each cell is tested against seqkernels/reference.py in float64.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SK_INLINE __host__ __device__ __forceinline__
#else
#define SK_INLINE inline __attribute__((always_inline))
#endif

namespace seqkernels {

// `std::`: the unqualified name would bind to the double function on the host.
SK_INLINE float exp_(float x) { return std::exp(x); }
SK_INLINE double exp_(double x) { return std::exp(x); }
SK_INLINE float tanh_(float x) { return std::tanh(x); }
SK_INLINE double tanh_(double x) { return std::tanh(x); }
// A NaN passes through, as in torch.
SK_INLINE float relu_(float x) { return x < 0.0f ? 0.0f : x; }
SK_INLINE double relu_(double x) { return x < 0.0 ? 0.0 : x; }
// 1 where y > 0, else 0: the derivative of relu written in its result.
SK_INLINE float positive_(float y) { return y > 0.0f ? 1.0f : 0.0f; }
SK_INLINE double positive_(double y) { return y > 0.0 ? 1.0 : 0.0; }

template <typename T>
SK_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + exp_(-x));
}
// Derivatives of sigmoid and tanh, written in their results.
template <typename T>
SK_INLINE T sigmoid_grad(T y) {
  return y * (T(1) - y);
}
template <typename T>
SK_INLINE T tanh_grad(T y) {
  return T(1) - y * y;
}

// Every cell declares
//   kGates   pre-activations per unit: gates_x and gates_h have kGates * H columns
//   kStates  1 (h) or 2 (h, c)
//   kSaved   values kept for the backward, beside the h and c sequences
//   kHidden  columns / H of the backward's grad_gates_h where it differs from grad_gates_x, else 0
// and, unless it is GruResetBefore,
//   forward(gates_x[G], gates_h[G], h, c, &new_h, &new_c, saved[K])
//   backward(saved[K], h, c, new_h, new_c, grad_h, grad_c,
//            grad_gates_x[G], &grad_gates_hn, &grad_prev_h, &grad_prev_c)
// where gates_h = weight_hh h + bias_hh, (h, c) is the previous state, grad_h and grad_c are the
// whole gradients of the new state, and grad_prev_h leaves out what flows through the recurrent
// matmul.

// Gates i, f, g, o; state (h, c): Hochreiter and Schmidhuber 1997 with forget gate, as
// torch.nn.LSTM.
struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kHidden = 0;

  template <typename T>
  SK_INLINE static void forward(const T* gates_x, const T* gates_h, T, T c, T* new_h, T* new_c,
                                T* saved) {
    const T i = sigmoid(gates_x[0] + gates_h[0]);
    const T f = sigmoid(gates_x[1] + gates_h[1]);
    const T g = tanh_(gates_x[2] + gates_h[2]);
    const T o = sigmoid(gates_x[3] + gates_h[3]);
    *new_c = f * c + i * g;
    *new_h = o * tanh_(*new_c);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
  }

  template <typename T>
  SK_INLINE static void backward(const T* saved, T, T c, T, T new_c, T grad_h, T grad_c,
                                 T* grad_gates_x, T*, T* grad_prev_h, T* grad_prev_c) {
    const T i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh_(new_c);
    const T grad = grad_c + grad_h * o * tanh_grad(tanh_c);
    grad_gates_x[0] = grad * g * sigmoid_grad(i);
    grad_gates_x[1] = grad * c * sigmoid_grad(f);
    grad_gates_x[2] = grad * i * tanh_grad(g);
    grad_gates_x[3] = grad_h * tanh_c * sigmoid_grad(o);
    *grad_prev_h = T(0);
    *grad_prev_c = grad * f;
  }
};

// Gates r, z, n; state h; the reset gate acts after the matmul, as in torch.nn.GRU and cuDNN.
struct Gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kHidden = 1;

  template <typename T>
  SK_INLINE static void forward(const T* gates_x, const T* gates_h, T h, T, T* new_h, T*,
                                T* saved) {
    const T r = sigmoid(gates_x[0] + gates_h[0]);
    const T z = sigmoid(gates_x[1] + gates_h[1]);
    const T n = tanh_(gates_x[2] + r * gates_h[2]);
    *new_h = n + z * (h - n);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = gates_h[2];
  }

  // grad_gates_h is grad_gates_x but for its n columns, which are *grad_gates_hn.
  template <typename T>
  SK_INLINE static void backward(const T* saved, T h, T, T, T, T grad_h, T, T* grad_gates_x,
                                 T* grad_gates_hn, T* grad_prev_h, T*) {
    const T r = saved[0], z = saved[1], n = saved[2], hn = saved[3];
    const T grad_n = grad_h * (T(1) - z) * tanh_grad(n);
    grad_gates_x[0] = grad_n * hn * sigmoid_grad(r);
    grad_gates_x[1] = grad_h * (h - n) * sigmoid_grad(z);
    grad_gates_x[2] = grad_n;
    *grad_gates_hn = grad_n * r;
    *grad_prev_h = grad_h * z;
  }
};

// Gates r, z, n; state h; the reset gate acts before the matmul (Cho et al. 2014), so a step has
// two products and this cell has two stages:
//   reset:   r, z and r * h from x_r + U_r h and x_z + U_z h
//   update:  n = tanh(x_n + U_n (r * h)),  h' = z h + (1 - z) n
struct GruResetBefore {
  static constexpr int kGates = 3, kStates = 1, kSaved = 3, kHidden = 0;

  // saved[0..1] = r, z; returns r * h.
  template <typename T>
  SK_INLINE static T reset(const T* gates_x, const T* gates_h, T h, T* saved) {
    saved[0] = sigmoid(gates_x[0] + gates_h[0]);
    saved[1] = sigmoid(gates_x[1] + gates_h[1]);
    return saved[0] * h;
  }
  // gates_hn = U_n (r * h) + b_n; saved[1] = z is read, saved[2] = n is written.
  template <typename T>
  SK_INLINE static T update(T gates_xn, T gates_hn, T h, T* saved) {
    saved[2] = tanh_(gates_xn + gates_hn);
    return saved[2] + saved[1] * (h - saved[2]);
  }
  // Gradients of the z and n columns, and of h through the update alone.
  template <typename T>
  SK_INLINE static void update_backward(const T* saved, T h, T grad_h, T* grad_gates_x,
                                        T* grad_prev_h) {
    const T z = saved[1], n = saved[2];
    grad_gates_x[1] = grad_h * (h - n) * sigmoid_grad(z);
    grad_gates_x[2] = grad_h * (T(1) - z) * tanh_grad(n);
    *grad_prev_h = grad_h * z;
  }
  // grad_rh = U_n^T grad_n; adds its share to *grad_prev_h and gives the r column.
  template <typename T>
  SK_INLINE static void reset_backward(const T* saved, T h, T grad_rh, T* grad_gates_x,
                                       T* grad_prev_h) {
    const T r = saved[0];
    grad_gates_x[0] = grad_rh * h * sigmoid_grad(r);
    *grad_prev_h = *grad_prev_h + grad_rh * r;
  }
};

// One gate, state h (Elman 1990), as torch.nn.RNN with nonlinearity="tanh".
struct RnnTanh {
  static constexpr int kGates = 1, kStates = 1, kSaved = 0, kHidden = 0;

  template <typename T>
  SK_INLINE static void forward(const T* gates_x, const T* gates_h, T, T, T* new_h, T*, T*) {
    *new_h = tanh_(gates_x[0] + gates_h[0]);
  }
  template <typename T>
  SK_INLINE static void backward(const T*, T, T, T new_h, T, T grad_h, T, T* grad_gates_x, T*,
                                 T* grad_prev_h, T*) {
    grad_gates_x[0] = grad_h * tanh_grad(new_h);
    *grad_prev_h = T(0);
  }
};

// torch.nn.RNN with nonlinearity="relu".
struct RnnRelu {
  static constexpr int kGates = 1, kStates = 1, kSaved = 0, kHidden = 0;

  template <typename T>
  SK_INLINE static void forward(const T* gates_x, const T* gates_h, T, T, T* new_h, T*, T*) {
    *new_h = relu_(gates_x[0] + gates_h[0]);
  }
  template <typename T>
  SK_INLINE static void backward(const T*, T, T, T new_h, T, T grad_h, T, T* grad_gates_x, T*,
                                 T* grad_prev_h, T*) {
    grad_gates_x[0] = grad_h * positive_(new_h);
    *grad_prev_h = T(0);
  }
};

// The list of cells: its order is the value of `Cell`, its second column the prefix of the op
// names.
#define SK_FOR_EACH_CELL(DO)           \
  DO(Lstm, lstm)                       \
  DO(Gru, gru)                         \
  DO(GruResetBefore, gru_reset_before) \
  DO(RnnTanh, rnn_tanh)                \
  DO(RnnRelu, rnn_relu)

enum class Cell : int32_t {
#define SK_ENUM(Type, name) k##Type,
  SK_FOR_EACH_CELL(SK_ENUM)
#undef SK_ENUM
};

enum class Dtype : int32_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

}  // namespace seqkernels
