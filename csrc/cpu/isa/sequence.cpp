// The tables of kernels of one instruction set. The build compiles this for each: SK_ISA is its
// name.
#include "cpu/products/few_rows.h"
#include "cpu/products/rows_product.h"
#include "cpu/sequence/backward.h"
#include "cpu/sequence/cell.h"
#include "cpu/sequence/forward.h"

namespace seqkernels {
namespace cpu {
namespace SK_ISA {

template <typename T>
void few_rows(const FewRows& f, int64_t c0, int64_t c1) {
  T* out = static_cast<T*>(f.out);
  dots(static_cast<const T*>(f.a), f.depth, f.rows, static_cast<const T*>(f.weight) + c0 * f.depth,
       f.depth, c1 - c0, out + c0, f.count);
  if (f.bias == nullptr) return;
  const T* bias = static_cast<const T*>(f.bias);
  for (int64_t r = 0; r < f.rows; ++r)
    for (int64_t c = c0; c < c1; ++c) out[r * f.count + c] += bias[c];
}

template <typename C, typename S>
constexpr Kernels make_kernels() {
  using F = ForwardKernel<C, S>;
  using B = BackwardKernel<C, S>;
  Kernels k{};
  k.compute_size = sizeof(Compute<S>);
  k.forward_units = F::kUnits;
  k.backward_units = B::kUnits;
  k.pack_forward = F::pack;
  k.forward = F::run;
  k.pack_backward = B::pack;
  k.backward = B::run;
  if constexpr (kPointwise<C>) {
    k.cell = CellKernel<C, S>::forward;
    k.cell_backward = CellKernel<C, S>::backward;
  }
  return k;
}

template <typename S>
constexpr Products make_products() {
  Products p{};
  p.compute_size = sizeof(Compute<S>);
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    p.few_rows = few_rows<S>;
    p.rows_product_panels = RowsProductKernel<S>::panels;
    p.rows_product = RowsProductKernel<S>::run;
  }
  return p;
}

// By the values of Cell and Dtype.
extern const Kernels kTable[][4];
const Kernels kTable[][4] = {
#define SK_ROW(Type, name)                                                                   \
  {make_kernels<Type, double>(), make_kernels<Type, float>(), make_kernels<Type, Float16>(), \
   make_kernels<Type, BFloat16>()},
    SK_FOR_EACH_CELL(SK_ROW)
#undef SK_ROW
};
extern const Products kProducts[4];
const Products kProducts[4] = {make_products<double>(), make_products<float>(),
                               make_products<Float16>(), make_products<BFloat16>()};

}  // namespace SK_ISA
}  // namespace cpu
}  // namespace seqkernels
