// Greedy decoding for one instruction set: see decode_kernels.h.
#define SK_ISA avx2
#include "decode_kernels.h"
