// Greedy decoding for one instruction set: see decode_kernels.h.
#define SK_ISA avx512
#include "decode_kernels.h"
