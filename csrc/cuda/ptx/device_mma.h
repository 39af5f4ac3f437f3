// Matrix fragments, conversions and fast functions. Included by device.h.
//
// Fragments of mma.sync (PTX ISA, "Matrix Fragments for mma"), lane = 4 * group + quad:
//   A 16x16 (16 bit), row major: a[0] row group, columns 2 quad and + 1; a[1] row group + 8; a[2],
//     a[3] the same rows, columns + 8.
//   B 16x8 (16 bit), column major: b[0] column group, rows 2 quad and + 1; b[1] rows + 8.
//   C, D 16x8 (float): d[0], d[1] row group, columns 2 quad and + 1; d[2], d[3] row group + 8.
//   A 16x8 (TF32): a[0] row group, column quad; a[1] row group + 8; a[2], a[3] column + 4.
//   B 8x8 (TF32): b[0] column group, row quad; b[1] row + 4.
// ldmatrix of a 16x16 tile by lane % 16 (row) and lane / 16 (column half) gives A; of an [n, k]
// tile without trans gives B.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>

namespace sk {

// 8x8 matrices of 16-bit elements (or 8x4 of 32 bits) from shared memory, N = 1, 2 or 4 of them.
// Lane 8 i + r gives the address of row r of matrix i: 16 bytes, aligned to 16; lanes from 8 N on
// give any. Lane 4 r + q receives in r[i] the elements 2 q and 2 q + 1 of row r. All lanes of the
// warp.
template <int N>
SK_DEVICE void ldmatrix(uint32_t (&r)[N], const void* row SK_AND_PLACE) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
#ifdef SK_EMULATE
  emu::ldmatrix<N>(r, row, place);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// d += a b, float32 accumulate, operands of type T = __half or __nv_bfloat16. All lanes of the
// warp.
template <typename T>
SK_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                            const uint32_t (&b)[2] SK_AND_PLACE) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#ifdef SK_EMULATE
  emu::mma_m16n8k16<T>(d, a, b, place);
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}
// Operands are float32 patterns whose low 13 bits the tensor core ignores: round with to_tf32
// first.
SK_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                const uint32_t (&b)[2] SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::mma_m16n8k8_tf32(d, a, b, place);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Nearest TF32 (10 mantissa bits, ties away from zero), as a float32 pattern.
SK_DEVICE uint32_t to_tf32(float x) {
#ifdef SK_EMULATE
  return emu::to_tf32(x);
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
#endif
}

// Strict float32: acc + a b, rounded once.
SK_DEVICE float fma(float a, float b, float acc) {
#ifdef SK_EMULATE
  return std::fma(a, b, acc);
#else
  return __fmaf_rn(a, b, acc);
#endif
}

// One value of a storage type (double, float, __half, __nv_bfloat16) from and to float, to nearest.
template <typename T>
SK_DEVICE float to_float(T x) {
  return static_cast<float>(x);
}
template <typename T>
SK_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<T>(x);
  }
}

// exp by ex2.approx: relative error 2^-22 near 0, growing with |x| (2 ulp + |x| 2^-23.4).
SK_DEVICE float exp_fast(float x) {
#ifdef SK_EMULATE
  return std::exp(x);
#else
  return __expf(x);
#endif
}
// 1 / (1 + exp(-x)), absolute error below 2e-7; right at both infinities, NaN stays NaN.
SK_DEVICE float sigmoid_fast(float x) {
#ifdef SK_EMULATE
  return 1.0f / (1.0f + std::exp(-x));
#else
  return __fdividef(1.0f, 1.0f + __expf(x < -87.0f ? 87.0f : -x));
#endif
}
// 2 sigmoid(2 x) - 1: absolute error below 4e-7, the relative error grows near 0.
SK_DEVICE float tanh_fast(float x) {
#ifdef SK_EMULATE
  return std::tanh(x);
#else
  return fmaf(2.0f, sigmoid_fast(2.0f * x), -1.0f);
#endif
}
// One instruction, relative error 2^-11: enough where the result is stored in 16 bits at once.
SK_DEVICE float tanh_approx(float x) {
#ifdef SK_EMULATE
  return emu::tanh_approx(x);
#else
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace sk
