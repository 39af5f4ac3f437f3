#define SK_ISA avx2
#include "table.h"
