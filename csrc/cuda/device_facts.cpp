// What is known of the devices of this process: asked once each, by whichever thread comes first.
#include <algorithm>
#include <map>
#include <mutex>

#include "cuda/launch.h"

#ifndef SK_CUDA_ARCHS
#define SK_CUDA_ARCHS ""
#endif

namespace seqkernels {
namespace {

struct Limits {
  int max_cluster = 0, max_units = 0, shared_per_block = 0;
};
std::mutex mutex;
std::map<int, DeviceFacts> known;
Limits limits;

void apply(int limit, int* value) {
  if (limit > 0) *value = std::min(*value, limit);
}

std::string version(int number) {
  return std::to_string(number / 10) + "." + std::to_string(number % 10);
}

}  // namespace

std::string device_facts(int device, DeviceFacts* facts) {
  int error = device < 0 ? current_device(&device) : 0;
  if (error == 0) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(device);
    if (found != known.end()) {
      *facts = found->second;
    } else {
      error = query_device(device, facts);
      if (error == 0) known[device] = *facts;
    }
    apply(limits.max_cluster, &facts->limits.max_cluster);
    apply(limits.max_units, &facts->limits.max_units);
    apply(limits.shared_per_block, &facts->limits.shared_per_block);
  }
  if (error != 0) return std::string("there is no usable GPU: ") + error_name(error);
  const std::string own = version(facts->major * 10 + facts->minor);
  if (facts->major < 8) {
    return "the CUDA kernels need compute capability 8.0 or newer, this device has " + own;
  }
  if (facts->image == 0) {
    return "the CUDA kernels were compiled for " SK_CUDA_ARCHS
           " and not for this device's compute capability " +
           own;
  }
  return "";
}

void limit_facts(int max_cluster, int max_units, int shared_per_block) {
  const std::lock_guard<std::mutex> lock(mutex);
  limits = {max_cluster, max_units, shared_per_block};
}

void forget_devices() {
  const std::lock_guard<std::mutex> lock(mutex);
  known.clear();
}

}  // namespace seqkernels
