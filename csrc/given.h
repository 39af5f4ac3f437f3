// Pointers to what a backward is given. c stands for all states beside h; null is zero, or what the
// cell does not have.
#pragma once

namespace seqkernels {

// Of a whole sequence.
struct GivenPointers {
  const void *grad_output, *grad_h_n, *grad_c_n, *grad_c_sequence;
  const void *output, *c_sequence, *saved;
};
// Of one step.
struct CellPointers {
  const void *grad_new_h, *grad_new_c;
  const void *h, *c, *new_h, *new_c, *saved;
};

}  // namespace seqkernels
