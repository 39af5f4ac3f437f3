// The namespace of the ops: a library of other cells has one of its own.
#pragma once

#ifndef SK_LIBRARY
#define SK_LIBRARY seqkernels
#endif
