// Greedy decoding for one instruction set: see decode_kernels.h.
#define SK_ISA baseline
#include "decode_kernels.h"
