// A vector of float or double lanes, as wide as the instruction set this file is compiled for, with
// the functions that cells need and loads and stores of every storage type.
//
// Included once per instruction set, in a namespace of its own, SK_ISA: an inline function of the
// same name compiled for two sets would otherwise be merged by the linker and could run where its
// instructions do not exist. For the same reason nothing here or in the files that include it uses
// a function template of the standard library.
//
// GCC's vector extensions (also in clang) keep one source for x86, Arm and the rest. A product
// followed by a sum becomes a fused multiply-add through -ffp-contract=fast.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cells/all.h"

#if defined(__AVX512F__)
#define SK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SK_VECTOR_BYTES 32
#else
#define SK_VECTOR_BYTES 16
#endif
#define SK_ALWAYS inline __attribute__((always_inline))

namespace seqkernels {
namespace cpu {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace SK_ISA {

constexpr int kBytes = SK_VECTOR_BYTES;
// Vector registers that hold sums in the product; the rest holds a row of weights and a factor.
constexpr int kAccumulators = kBytes == 64 ? 24 : 12;

// f(Count<n>()) for a number n from 1 to kMost, at most 12, that is known only at run time. A
// switch: a chain of comparisons costs a small RNN up to 5 %.
template <int n>
struct Count {
  SK_ALWAYS constexpr operator int() const { return n; }
};
template <int kMost, typename F>
SK_ALWAYS void with_count(int64_t count, const F& f) {
  switch (count) {
#define SK_CASE(n)                           \
  case n:                                    \
    if constexpr (n <= kMost) f(Count<n>()); \
    break;
    SK_CASE(1)
    SK_CASE(2)
    SK_CASE(3)
    SK_CASE(4)
    SK_CASE(5)
    SK_CASE(6)
    SK_CASE(7)
    SK_CASE(8)
    SK_CASE(9)
    SK_CASE(10)
    SK_CASE(11)
    SK_CASE(12)
#undef SK_CASE
  }
}

template <typename S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename S>
using Compute = typename ComputeOf<S>::type;

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef int64_t Longs __attribute__((vector_size(kBytes)));
typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));

template <typename T>
struct RawOf {
  using type = Floats;
};
template <>
struct RawOf<double> {
  using type = Doubles;
};

template <typename T>
struct Vec {
  using Raw = typename RawOf<T>::type;
  static constexpr int kLanes = kBytes / sizeof(T);
  Raw v;

  Vec() = default;
  SK_ALWAYS Vec(Raw raw) : v(raw) {}
  // x - 0 is x for every x, so that the compiler leaves a broadcast alone.
  SK_ALWAYS Vec(T x) : v(x - Raw{}) {}

  SK_ALWAYS friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  SK_ALWAYS friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  SK_ALWAYS friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  SK_ALWAYS friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  SK_ALWAYS friend Vec operator-(Vec a) { return -a.v; }
};

template <typename To, typename From>
SK_ALWAYS To bit_cast_(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// exp(x) = scale (1 + rest): x = n log 2 + r, |r| <= log(2) / 2, scale = 2^n, rest = exp(r) - 1 =
// r + r^2 p(r) with p of degree 4 fitted at Chebyshev's points, which leaves 1e-8 of exp(r). Adding
// 1.5 * 2^23 rounds to an integer and leaves it in the low bits. Beyond +-87, where a sigmoid or
// tanh no longer moves, the value stays; NaN passes.
struct Exponential {
  Floats scale, rest;
};
SK_ALWAYS Exponential exponential(Floats x) {
  const float kRound = 12582912.0f;
  x = x > 87.0f ? Floats{} + 87.0f : x;
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504088896341f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.3933733571e-3f + 8.3632357419e-3f;
  p = p * r + 4.1666463017e-2f;
  p = p * r + 1.6666576266e-1f;
  p = p * r + 0.5f;
  const Words scale = (bit_cast_<Words>(shifted) << 23) + (127u << 23);
  return {bit_cast_<Floats>(scale), p * (r * r) + r};
}
SK_ALWAYS Vec<float> exp_(Vec<float> a) {
  const Exponential e = exponential(a.v);
  return e.scale * e.rest + e.scale;
}

// a / (b + low) where b is neither small nor huge and low its rounding error, rounded as well as a
// division that takes three times as long: an estimate of 14 bits and one step that uses its
// remainder.
SK_ALWAYS Floats quotient(Floats a, Floats b, Floats low) {
#if defined(__AVX512F__)
  // The masked form: the plain one reads an undefined vector, which GCC 12 warns of.
  const Floats estimate = _mm512_maskz_rcp14_ps(0xffff, b), q = a * estimate;
  return q + ((a - q * b) - q * low) * estimate;
#elif defined(__FMA__)
  const Floats q = a / b;
  return q + ((a - q * b) - q * low) / b;
#else
  const Floats q = a / b;
  return q - q * (low / b);
#endif
}
// Within 2.5 units in the last place where x >= -87; below, what is given stays under 2^-125. Where
// exp(-x) overflows it is 0, as in torch: a closed gate multiplies an infinite state to NaN, and a
// huge one to 0.
SK_ALWAYS Vec<float> sigmoid(Vec<float> x) {
  const Exponential e = exponential(-x.v);
  const Floats y = quotient(Floats{} + 1.0f, e.scale * e.rest + (e.scale + 1.0f), Floats{});
  return x.v < -88.72284f ? Floats{} : y;
}
// tanh(x) = m / (m + 2) with m = exp(2x) - 1, which does not cancel: near zero scale is 1. Within
// 2.1 units in the last place; tanh(-0) is +0.
SK_ALWAYS Vec<float> tanh_(Vec<float> x) {
  const Exponential e = exponential(x.v + x.v);
  const Floats m = e.scale * e.rest + (e.scale - 1.0f), sum = m + 2.0f;
  return quotient(m, sum, m - (sum - 2.0f));
}

// The same in double, but that it overflows to infinity; the Taylor series of degree 13 leaves
// 4e-18 at |r| = log(2) / 2.
SK_ALWAYS Vec<double> exp_(Vec<double> a) {
  const double kRound = 6755399441055744.0;
  Doubles x = a.v;
  x = x > 708.0 ? Doubles{} + 708.0 : x;
  x = x < -708.0 ? Doubles{} - 708.0 : x;
  const Doubles shifted = x * 1.44269504088896340736 + kRound;
  const Doubles n = shifted - kRound;
  const Doubles r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  Doubles p = r * (1.0 / 6227020800) + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * (r * r) + (r + 1.0);
  const Longs scale = (bit_cast_<Longs>(shifted) << 52) + (int64_t(1023) << 52);
  return a.v > 709.782712893384 ? Doubles{} + HUGE_VAL : p * bit_cast_<Doubles>(scale);
}

// tanh, Cephes: a rational function near zero, where 1 - 2 / (exp(2|x|) + 1) would cancel.
// Within 1.5 units in the last place.
SK_ALWAYS Vec<double> tanh_(Vec<double> a) {
  const Doubles x = a.v, z = x * x, size = x < 0.0 ? -x : x;
  Doubles p = z * -9.64399179425052238628e-1 - 9.92877231001918586564e1;
  p = p * z - 1.61468768441708447952e3;
  Doubles q = z + 1.12811678491632931402e2;
  q = q * z + 2.23548839060100448583e3;
  q = q * z + 4.84406305325125486048e3;
  const Doubles near = x + x * z * (p / q);
  const Doubles far = 1.0 - 2.0 / (exp_(Vec<double>(size + size)).v + 1.0);
  return size < 0.625 ? near : (x < 0.0 ? -far : far);
}

template <typename T>
SK_ALWAYS Vec<T> relu_(Vec<T> x) {
  return x.v < T(0) ? typename Vec<T>::Raw{} : x.v;
}
template <typename T>
SK_ALWAYS Vec<T> positive_(Vec<T> y) {
  return y.v > T(0) ? Vec<T>(T(1)).v : typename Vec<T>::Raw{};
}

template <typename To>
SK_ALWAYS To load_raw(const void* p) {
  To to;
  std::memcpy(&to, p, sizeof(To));
  return to;
}

// A whole vector of each storage type, in memory order.
SK_ALWAYS Vec<float> load(const float* p) { return load_raw<Floats>(p); }
SK_ALWAYS Vec<double> load(const double* p) { return load_raw<Doubles>(p); }
SK_ALWAYS Vec<float> load(const BFloat16* p) {
  return bit_cast_<Floats>(__builtin_convertvector(load_raw<Halves>(p), Words) << 16);
}
SK_ALWAYS Vec<float> load(const Float16* p) {
#if defined(__AVX512F__)
  // The masked forms: the plain ones read an undefined vector, which GCC 12 warns of.
  return Floats(_mm512_maskz_cvtph_ps(0xffff, load_raw<__m256i>(p)));
#elif defined(__F16C__)
  return Floats(_mm256_cvtph_ps(load_raw<__m128i>(p)));
#else
  // The exponent is rebiased by a product, which also normalises subnormals.
  const Words bits = __builtin_convertvector(load_raw<Halves>(p), Words);
  const Words size = (bits & 0x7fffu) << 13;
  Words value = bit_cast_<Words>(bit_cast_<Floats>(size) * 5.192296858534828e33f);
  value = (bits & 0x7c00u) == 0x7c00u ? size | 0x7f800000u : value;
  return bit_cast_<Floats>(value | (bits & 0x8000u) << 16);
#endif
}

SK_ALWAYS void store(float* p, Vec<float> x) { std::memcpy(p, &x.v, sizeof(x.v)); }
SK_ALWAYS void store(double* p, Vec<double> x) { std::memcpy(p, &x.v, sizeof(x.v)); }
SK_ALWAYS void store_bits(void* p, Words bits) {
  const Halves halves = __builtin_convertvector(bits, Halves);
  std::memcpy(p, &halves, sizeof(halves));
}
// Round to nearest even; a NaN stays one.
SK_ALWAYS void store(BFloat16* p, Vec<float> x) {
  const Words bits = bit_cast_<Words>(x.v);
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  store_bits(p, (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
SK_ALWAYS void store(Float16* p, Vec<float> x) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, __m512(x.v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &halves, sizeof(halves));
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph(__m256(x.v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &halves, sizeof(halves));
#else
  const Words bits = bit_cast_<Words>(x.v), sign = bits & 0x80000000u, size = bits ^ sign;
  const Words normal = (size + 0xc8000fffu + (size >> 13 & 1u)) >> 13;
  // Adding 0.5 shifts the digits of a subnormal half to the bottom, rounded.
  const Words subnormal =
      bit_cast_<Words>(bit_cast_<Floats>(size) + 0.5f) - bit_cast_<Words>(Floats{} + 0.5f);
  const Words special = size > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  Words half = size < (113u << 23) ? subnormal : normal;
  half = size >= (143u << 23) ? special : half;
  store_bits(p, half | sign >> 16);
#endif
}

// The first n lanes alone, where the rest does not exist (kFull: n is a whole vector).
template <bool kFull, typename S>
SK_ALWAYS Vec<Compute<S>> load(const S* p, int64_t n) {
  if (kFull) return load(p);
  alignas(64) S lanes[Vec<Compute<S>>::kLanes] = {};
  for (int64_t k = 0; k < n; ++k) lanes[k] = p[k];
  return load(static_cast<const S*>(lanes));
}
template <bool kFull, typename S>
SK_ALWAYS void store(S* p, Vec<Compute<S>> x, int64_t n) {
  if (kFull) return store(p, x);
  alignas(64) S lanes[Vec<Compute<S>>::kLanes];
  store(static_cast<S*>(lanes), x);
  for (int64_t k = 0; k < n; ++k) p[k] = lanes[k];
}

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
