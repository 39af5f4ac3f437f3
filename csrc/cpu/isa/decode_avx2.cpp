// Greedy decoding for one instruction set: see decode/kernels.h.
#define SK_ISA avx2
#include "cpu/decode/kernels.h"
