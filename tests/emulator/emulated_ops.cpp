// The CUDA bindings as ops on CPU tensors, in the library seqkernels_emulated: the same binding and
// kernel sources, with kernels run by the emulator. Schemas are those of csrc/ops.cpp.
#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(seqkernels_emulated, m)
#include "ops.cpp"

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) \
  _STABLE_TORCH_LIBRARY_IMPL(seqkernels_emulated, CPU, m, __COUNTER__)
#include "cuda/binding.cpp"

namespace seqkernels {
extern DeviceFacts emulated_facts;
}

// The device that plans are made for.
extern "C" __attribute__((visibility("default"))) void emulated_device(int processors,
                                                                       int shared_per_block,
                                                                       int max_cluster,
                                                                       int max_units) {
  seqkernels::emulated_facts = {9, 0, processors, shared_per_block, max_units, max_cluster, {}};
}
