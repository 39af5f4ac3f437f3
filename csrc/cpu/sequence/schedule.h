// From the arguments of a sequence to slices of rows, their workspace, and a run on torch's
// threads.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/sequence/kernels.h"
#include "layout.h"

namespace seqkernels {
namespace cpu {

// The call's steps, sizes and caller's pointers are filled in; packing, slices and workspace are
// not.
void run_forward(Forward f, const Layout& layout);
void run_backward(Backward b, const Layout& layout);

// Rows up to which a product reads the weights as they are: packing them costs some ten such rows.
constexpr int64_t kFewRows = 4;
void run_few_rows(const Products& products, const FewRows& f);

// A cell over rows, on several threads where that pays.
void run_cell(const Kernels& kernels, const CellForward& f, int64_t rows);
void run_cell_backward(const Kernels& kernels, const CellBackward& b, int64_t rows);

}  // namespace cpu
}  // namespace seqkernels
