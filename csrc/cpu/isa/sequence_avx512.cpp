#define SK_ISA avx512
#include "cpu/isa/table.h"
