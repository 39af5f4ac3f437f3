// seqkernels::rows_product on the CPU: arguments checked, columns of the gradients split over
// torch's threads. Who computes a column does not change its sum.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "cpu/aligned_memory.h"
#include "cpu/sequence/kernels.h"
#include "library.h"
#include "make.h"

namespace seqkernels {
namespace cpu {
namespace {

// Multiply-adds that are worth waking a thread.
constexpr int64_t kWorthWaking = 128 * 1024;

void run(const Products& kernels, const RowsProduct& p) {
  const int64_t panels = kernels.rows_product_panels(p);
  int64_t work = 0, depth = std::min(p.width, kRowsProductWidth);
  for (int64_t g = 0; g < p.gradients; ++g) work += p.rows * p.width * p.columns[g];
  int64_t tasks = std::min<int64_t>(torch::stable::get_num_threads(), work / kWorthWaking);
  // Every task packs x for itself, which two panels pay for.
  tasks = std::max<int64_t>(1, std::min(tasks, panels / 2));
  // A panel of x is at most 32 columns wide.
  const int64_t bytes = (depth + 32) * std::min(p.rows, kRowsProductBlock) * kernels.compute_size;
  const auto body = [&](int64_t begin, int64_t end) {
    AlignedMemory memory;
    kernels.rows_product(p, panels * begin / tasks, panels * end / tasks, memory.take(bytes));
  };
  if (tasks == 1) return body(0, 1);
  torch::stable::parallel_for(0, tasks, 1, body);
}

Tensor rows_product(std::vector<Tensor> grads, std::vector<Tensor> x) {
  const Op op{"rows_product"};
  SK_CHECK(!grads.empty() && !x.empty(), op, ": expected at least one tensor in each list");
  Arguments arguments(op, grads[0]);
  std::vector<const void*> grad_data, x_data;
  std::vector<int64_t> columns, strides, x_rows;
  std::vector<Tensor> kept;
  RowsProduct p{};
  int64_t total = 0;
  for (const Tensor& grad : grads) {
    SK_CHECK(grad.dim() == 2 && grad.size(0) == grads[0].size(0), op, ": expected gradients of ",
             text(sizes_of(grads[0])), " or other columns, got ", text(sizes_of(grad)));
    const std::vector<int64_t> sizes = sizes_of(grad);
    // Columns of a wider matrix are read where they are.
    const bool in_place = grad.stride(1) == 1 && grad.scalar_type() == grads[0].scalar_type();
    grad_data.push_back(in_place && grad.is_cpu() ? grad.const_data_ptr()
                                                  : arguments.pointer("grads", grad, sizes));
    strides.push_back(in_place ? grad.stride(0) : sizes[1]);
    columns.push_back(sizes[1]);
    total += sizes[1];
  }
  p.rows = grads[0].size(0);
  p.width = x[0].dim() == 2 ? x[0].size(1) : 0;
  int64_t rows = 0;
  for (const Tensor& input : x) {
    const int64_t n = input.dim() == 2 ? input.size(0) : 0;
    x_data.push_back(arguments.pointer("x", input, {n, p.width}));
    x_rows.push_back(n);
    rows += n;
  }
  SK_CHECK(rows == p.rows, op, ": the gradients have ", p.rows, " rows, x has ", rows);
  const Products& k = products(arguments.dtype);
  SK_CHECK(k.rows_product, op, ": expected float32 or float64 tensors");
  Tensor out = make(grads[0], {total, p.width});
  p.gradients = grads.size();
  p.grads = grad_data.data();
  p.strides = strides.data();
  p.columns = columns.data();
  p.x = x_data.data();
  p.x_rows = x_rows.data();
  p.out = out.mutable_data_ptr();
  if (p.rows == 0)
    torch::stable::zero_(out);
  else if (total > 0 && p.width > 0)
    run(k, p);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CPU, m) { m.impl("rows_product", TORCH_BOX(&rows_product)); }

}  // namespace cpu
}  // namespace seqkernels
