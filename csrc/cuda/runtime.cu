// What the bindings need of the CUDA runtime beside their kernels.
#include <cstdlib>

#include "device.h"
#include "launch.h"

namespace seqkernels {
namespace {

// As many numbers as fit into the arguments of a kernel.
struct Numbers {
  static constexpr int kCapacity = 480;
  int64_t value[kCapacity];
};
__global__ void numbers_kernel(int64_t* to, int count, Numbers numbers) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = numbers.value[i];
}

}  // namespace

int launch_numbers(int64_t* to, const int64_t* numbers, int64_t count, void* stream) {
  sk::LaunchConfig config;
  config.grid = dim3(1);
  config.block = dim3(128);
  config.stream = stream;
  for (int64_t first = 0; first < count; first += Numbers::kCapacity) {
    const int part =
        static_cast<int>(count - first < Numbers::kCapacity ? count - first : Numbers::kCapacity);
    Numbers values = {};
    memcpy(values.value, numbers + first, part * sizeof(int64_t));
    if (const int error = sk::launch(numbers_kernel, config, to + first, part, values))
      return error;
  }
  return 0;
}

#ifdef SK_EMULATE

extern "C" const char* emu_error();

// Tests choose the device that plans are made for.
DeviceFacts emulated_facts{9, 0, 132, 227 * 1024, 256, 16, {}};
int query_device(DeviceFacts* facts) {
  *facts = emulated_facts;
  return 0;
}
const char* error_name(int) { return emu_error(); }
int zero_async(void* p, int64_t bytes, void*) {
  memset(p, 0, bytes);
  return 0;
}

#else

namespace {

// Stands for any kernel that fills a multiprocessor.
__global__ void __launch_bounds__(kMaxWarps * 32, 1) probe_kernel() {}

// A limit that tests and measurements set to reach other decompositions.
int limit(const char* variable, int otherwise) {
  const char* text = getenv(variable);
  const int value = text == nullptr ? 0 : atoi(text);
  return value > 0 && value < otherwise ? value : otherwise;
}

// Which clusters of such blocks can be resident, and how many of each size.
void ask_clusters(DeviceFacts* facts) {
  if (facts->major < 9) return;
  const int most = limit("SEQKERNELS_MAX_CLUSTER", 16);
  for (int i = 0; i < 4; ++i) {
    sk::LaunchConfig config;
    config.cluster = 2u << i;
    if (static_cast<int>(config.cluster) > most) break;
    config.grid = dim3(config.cluster);
    config.block = dim3(kMaxWarps * 32);
    config.shared_bytes = facts->shared_per_block;
    int clusters = 0;
    if (sk::max_resident(probe_kernel, config, &clusters) != 0 || clusters == 0) continue;
    facts->clusters[i] = clusters;
    facts->max_cluster = static_cast<int>(config.cluster);
  }
}

}  // namespace

int query_device(DeviceFacts* facts) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  get(&facts->major, cudaDevAttrComputeCapabilityMajor);
  get(&facts->minor, cudaDevAttrComputeCapabilityMinor);
  get(&facts->processors, cudaDevAttrMultiProcessorCount);
  get(&facts->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  facts->max_units = limit("SEQKERNELS_MAX_UNITS", 256);
  if (error == cudaSuccess) ask_clusters(facts);
  return sk::detail::finish(error);
}
const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
int zero_async(void* p, int64_t bytes, void* stream) {
  return sk::detail::finish(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#endif

}  // namespace seqkernels
