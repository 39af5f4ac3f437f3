#define SK_ISA baseline
#include "table.h"
