// What the instruction-set kernels and their callers share: plain structures, no torch, no
// templates.
//
// A sequence is run by slices of rows. The rows of a slice advance together through PHASES; between
// two phases everybody who works on the slice waits for the others. Within a phase the hidden units
// are split into PANELS, and any panel can be computed by anybody. A panel is a run of units whose
// weights are packed so that one row of the product reads them in order.
#pragma once
#include <cstdint>

#include "cells/all.h"
#include "given.h"

namespace seqkernels {
namespace cpu {

// Rows stand sorted by falling length, so that those still running at step t are a prefix.
struct Slice {
  int64_t rows;
  const int64_t* row;     // [rows] place of a row within a step of the caller's tensors
  const int64_t* length;  // [rows] steps of a row, falling
  const int64_t* active;  // [T] rows longer than t
  // Workspace in the compute type, rows `stride` apart. Double buffered where a phase reads whole
  // rows of what it writes: phase s reads buffer s % 2 and writes the other.
  void* h[2];
  void* others;         // the other states of a row side by side, each `stride` wide
  void* operand;        // what the product of a second stage reads
  void* kept;           // what a second stage reads of the values saved, side by side
  void* grad_gates[2];  // of the recurrent pre-activations, rows `gates_stride` apart
  void* grad_h;         // what does not flow through weight_hh
  void* grad_others;
};

struct Steps {
  Cell cell;
  Dtype dtype;
  int64_t steps, batch, hidden;
  int64_t stride, gates_stride;  // of the workspace
  const int64_t* first_row;      // [T] where a step begins in the caller's tensors
  const bool* reset;             // [T, N] or null
  bool reverse;
  bool padded;       // rows past their end exist in the caller's tensors and are to be zeroed
  bool pack_inside;  // phase 0 packs the weights of its panels
  const void *weight_hh, *bias_hh;
  void* packed;       // panels of weight_hh in the compute type
  void* packed_bias;  // forward: panels of the biases; then those of the parameters
};

// c_0, c_n and c_sequence hold all states beside h.
struct Forward : Steps {
  const int64_t* symbols;  // rows of gates_x that the steps take, or null: one after another
  const void *gates_x, *h_0, *c_0;
  void *output, *h_n, *c_n, *c_sequence, *saved;  // the last two null where nothing is to be saved
};

struct Backward : Steps, GivenPointers {
  const void *h_0, *c_0;
  void *grad_gates_x, *grad_gates_h, *grad_h_0, *grad_c_0;
};

// One step without its product; gates [N, G*H], state [N, H].
struct CellForward {
  int64_t hidden;
  const void *gates_x, *gates_h, *h, *c;
  void *new_h, *new_c, *saved;
};

struct CellBackward : CellPointers {
  int64_t hidden;
  void *grad_gates_x, *grad_gates_h, *grad_h, *grad_c;
};

// A product of few rows with weights as torch stores them: columns of out [rows, count] =
// a [rows, depth] weight [count, depth]^T + bias.
struct FewRows {
  int64_t rows, depth, count;
  const void *a, *weight, *bias;  // bias [count] or null
  void* out;
};

// out [sum of columns, width] = (the gradients side by side)^T (the inputs one on another).
struct RowsProduct {
  int64_t rows, width, gradients;
  const void* const* grads;  // [gradients] each [rows, columns], rows `strides` apart
  const int64_t *columns, *strides;
  const void* const* x;   // each [x_rows, width]
  const int64_t* x_rows;  // adding up to rows
  void* out;
};
// Rows of a block, and columns of x packed at a time: half a second-level cache in float32.
constexpr int64_t kRowsProductBlock = 128, kRowsProductWidth = 1024;

// Phases before and after the steps: load the state (and pack), store the state.
constexpr int64_t kForwardEnds = 2;
// Load; gather the rows that ended early; the product that gives grad_h_0.
constexpr int64_t kBackwardEnds = 3;

// The kernels of one cell, dtype and instruction set. Panels run from p0 to p1.
struct Kernels {
  int64_t compute_size;                   // bytes of the compute type
  int64_t forward_units, backward_units;  // units in a panel
  void (*pack_forward)(const Forward&, int64_t p0, int64_t p1);
  void (*forward)(const Forward&, const Slice&, int64_t phase, int64_t p0, int64_t p1);
  void (*pack_backward)(const Backward&, int64_t p0, int64_t p1);
  void (*backward)(const Backward&, const Slice&, int64_t phase, int64_t p0, int64_t p1);
  void (*cell)(const CellForward&, int64_t row0, int64_t row1);  // null unless it is pointwise
  void (*cell_backward)(const CellBackward&, int64_t row0, int64_t row1);
};

// Products of one dtype and instruction set; null where the compute type is not the storage type.
struct Products {
  int64_t compute_size;
  void (*few_rows)(const FewRows&, int64_t c0, int64_t c1);
  // Panels of the gradients' columns, and the sums of panels p0 to p1.
  int64_t (*rows_product_panels)(const RowsProduct&);
  void (*rows_product)(const RowsProduct&, int64_t p0, int64_t p1, void* workspace);
};

// The kernels of the chosen instruction set.
const Kernels& kernels(Cell cell, Dtype dtype);
const Products& products(Dtype dtype);
// Its name: "baseline", "avx2" or "avx512".
const char* isa_name();

}  // namespace cpu
}  // namespace seqkernels
