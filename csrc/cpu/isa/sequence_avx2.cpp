#define SK_ISA avx2
#include "cpu/isa/table.h"
