// Greedy decoding for one instruction set: see decode/kernels.h.
#define SK_ISA baseline
#include "cpu/decode/kernels.h"
