#define SK_ISA avx512
#include "table.h"
