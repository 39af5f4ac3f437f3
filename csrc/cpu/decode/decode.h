// What the instruction-set kernels of greedy decoding and their caller share: plain structures.
//
// A step of the decode is L + 1 phases: one per layer, then the projection. Within a phase the work
// is split into PANELS, and any panel can be computed by anybody. A panel is a run of hidden units
// with all their gates, or a run of the vocabulary: kVectors vectors of results per row. Rows stand
// in SLOTS; those still running are a prefix.
//
// Every result is summed over its depth in one fixed order, whatever the other rows and whoever
// computes it: rows do not depend on their batch, nor results on the number of threads.
#pragma once
#include <cstdint>

#include "cells/all.h"

namespace seqkernels {
namespace cpu {

// Weights of one product: [panels * width, depth] in torch's layout or packed by panels.
struct DecodeMatrix {
  int64_t depth;
  const void* weight;  // torch's layout
  const void* bias;    // [gates * size] or null
  void* packed;        // [panels, depth, width]; null: the product reads torch's layout
  void* packed_bias;   // [panels, width]
};

struct Decode {
  int64_t layers, hidden, vocabulary;
  int64_t cell_panels, word_panels;
  int64_t stride;                 // of rows of the state
  int64_t input_stride;           // of rows of `input`
  int64_t capacity;               // slots
  const DecodeMatrix* weight_ih;  // [layers]
  const DecodeMatrix* weight_hh;  // [layers]
  DecodeMatrix projection;
  bool scores;

  int64_t rows;  // slots still running
  void** h;      // [layers] state before the step, [capacity, stride]
  void** new_h;  // [layers] state after it
  void** c;      // [layers] the other states, [capacity, their number * stride]
  // Gates of the embedding, [cell_panels, width], where slot s finds those of its token.
  const void** gates_x;
  // Those of them that have to be computed first: from row m of `input` to missing_gates[m].
  int64_t missing;
  void* input;
  void** missing_gates;
  // Of every share of the vocabulary, [shares, capacity]: the largest logit, its word, and the sum
  // of exp(logit - largest).
  void* best;
  int64_t* word;
  void* sum;
};

struct DecodeKernels {
  int64_t element_size, lanes;
  int64_t units;  // of a cell's panel
  int64_t words;  // of a projection's panel
  void (*pack_cell)(const DecodeMatrix&, int64_t hidden, int64_t p0, int64_t p1);
  void (*pack_projection)(const DecodeMatrix&, int64_t vocabulary, int64_t p0, int64_t p1);
  void (*layer)(const Decode&, int64_t layer, int64_t p0, int64_t p1);
  void (*project)(const Decode&, int64_t share, int64_t p0, int64_t p1);
  // The winner among the shares for one slot; its log-probability to *log_prob if asked for.
  int64_t (*choose)(const Decode&, int64_t shares, int64_t slot, double* log_prob);
};

// The kernels of the chosen instruction set for a pointwise cell, in float32 or float64.
const DecodeKernels& decode_kernels(Cell cell, Dtype dtype);

}  // namespace cpu
}  // namespace seqkernels
