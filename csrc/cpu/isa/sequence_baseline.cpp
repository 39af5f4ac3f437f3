#define SK_ISA baseline
#include "cpu/isa/table.h"
