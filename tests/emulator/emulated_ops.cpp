// What the emulated CUDA ops have beside the bindings and kernels, which are those of csrc: the
// device that plans are made for.
#include "cuda/plan/plan_cache.h"

namespace seqkernels {
extern DeviceFacts emulated_facts;
extern int emulated_queries;
}  // namespace seqkernels

// The device that plans are made for.
extern "C" __attribute__((visibility("default"))) void emulated_device(int processors,
                                                                       int shared_per_block,
                                                                       int max_cluster,
                                                                       int max_units) {
  seqkernels::emulated_facts = {9, 0, 90, {processors, shared_per_block, max_cluster, max_units}};
  seqkernels::forget_devices();
  seqkernels::forget_plans();
}

// How often the device has been asked for its facts.
extern "C" __attribute__((visibility("default"))) int emulated_device_queries() {
  return seqkernels::emulated_queries;
}

// What dispatch.py asks the module _C on a GPU: why there is no launch for a call, or nothing.
extern "C" __attribute__((visibility("default"))) const char* emulated_refusal(
    int cell, int math, int64_t batch, int64_t hidden, bool training, int directions, int layers,
    bool backward_apart) {
  using namespace seqkernels;
  static std::string refusal;
  DeviceFacts facts;
  refusal = device_facts(0, &facts);
  PlanRequest request;
  request.device = facts.limits;
  request.cell = static_cast<Cell>(cell), request.math = static_cast<Math>(math);
  request.batch = batch, request.hidden = hidden;
  const CallShape call{training, directions, layers, backward_apart};
  if (refusal.empty()) refusal = persistent_refusal(request, call, 0);
  return refusal.c_str();
}
