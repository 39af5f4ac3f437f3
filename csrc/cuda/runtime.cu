// What the bindings need of the CUDA runtime beside their kernels.
#include "cuda/launch.h"
#include "cuda/ptx/device.h"

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

bool refuses_launch(int error) {
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorNotSupported:
    case cudaErrorInvalidClusterSize:
      return true;
    default:
      return false;
  }
}

#ifdef SK_SPIN_LIMIT
int spin_limit() { return SK_SPIN_LIMIT; }
std::vector<SpinReport> spin_reports() {
  const char* waits[] = {"nothing", "words", "barrier", "counter"};
  std::vector<SpinReport> found;
  const sk::SpinRecord* records = sk::host_spin_records();
  for (int i = 0; records != nullptr && i < sk::kSpinRecords; ++i) {
    const sk::SpinRecord& r = records[i];
    if (r.wait == sk::Wait::kNothing) continue;
    found.push_back({waits[static_cast<int>(r.wait)], r.block, r.thread, r.round, r.peer, r.polls});
  }
  return found;
}
#else
int spin_limit() { return 0; }
std::vector<SpinReport> spin_reports() { return {}; }
#endif

#ifdef SK_EMULATE

extern "C" const char* emu_error();

// Tests choose the device that plans are made for.
DeviceFacts emulated_facts{9, 0, 90, {}};
int emulated_queries = 0;
int query_device(int, DeviceFacts* facts) {
  ++emulated_queries;
  *facts = emulated_facts;
  return 0;
}
int current_device(int* device) {
  *device = 0;
  return 0;
}
Aside::Aside(int) {}
Aside::~Aside() {}
const char* error_name(int) {
  const char* report = emu_error();
  return *report != 0 ? report : "refused by the emulated device";
}
int zero_async(void* p, int64_t bytes, void*) {
  memset(p, 0, bytes);
  return 0;
}

#else

namespace {

// Stands for any kernel that fills a multiprocessor.
__global__ void __launch_bounds__(kMaxWarps * 32, 1) probe_kernel() {}

// Which clusters of such blocks can be resident, and how many of each size.
void ask_clusters(DeviceFacts* facts) {
  // Code made for an older architecture has no clusters, whatever the device.
  if (facts->major < 9 || facts->image < 90) return;
  for (int i = 0; i < 4; ++i) {
    sk::LaunchConfig config;
    config.cluster = 2u << i;
    config.grid = dim3(config.cluster);
    config.block = dim3(kMaxWarps * 32);
    config.shared_bytes = facts->limits.shared_per_block;
    int clusters = 0;
    if (sk::max_resident(probe_kernel, config, &clusters) != 0 || clusters == 0) continue;
    facts->limits.clusters[i] = clusters;
    facts->limits.max_cluster = static_cast<int>(config.cluster);
  }
}

}  // namespace

int query_device(int device, DeviceFacts* facts) {
  facts->limits.max_cluster = 1;
  const Aside aside(device);
  cudaError_t error = static_cast<cudaError_t>(aside.error);
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  get(&facts->major, cudaDevAttrComputeCapabilityMajor);
  get(&facts->minor, cudaDevAttrComputeCapabilityMinor);
  get(&facts->limits.processors, cudaDevAttrMultiProcessorCount);
  get(&facts->limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error != cudaSuccess) return sk::detail::finish(error);
  cudaFuncAttributes probe;
  const cudaError_t image = cudaFuncGetAttributes(&probe, probe_kernel);
  if (image == cudaSuccess) {
    facts->image = probe.ptxVersion;
    ask_clusters(facts);
    return 0;
  }
  sk::detail::finish(image);
  return refuses_launch(image) ? 0 : image;
}

#ifdef SK_SPIN_LIMIT
}  // namespace seqkernels
sk::SpinRecord* sk::host_spin_records() {
  static SpinRecord* const records = [] {
    void* found = nullptr;
    const auto kind = cudaHostAllocMapped | cudaHostAllocPortable;
    if (detail::finish(cudaHostAlloc(&found, kSpinRecords * sizeof(SpinRecord), kind)) == 0) {
      memset(found, 0, kSpinRecords * sizeof(SpinRecord));
    }
    return static_cast<SpinRecord*>(found);
  }();
  return records;
}
namespace seqkernels {
#endif

int current_device(int* device) { return sk::detail::finish(cudaGetDevice(device)); }

Aside::Aside(int device) {
  auto mode = cudaStreamCaptureModeRelaxed;
  cudaError_t found = cudaThreadExchangeStreamCaptureMode(&mode);
  mode_ = mode;
  if (found == cudaSuccess) found = cudaGetDevice(&previous_);
  if (found == cudaSuccess) found = cudaSetDevice(device);
  cudaStream_t own = nullptr;
  if (found == cudaSuccess) found = cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking);
  stream = own;
  error = sk::detail::finish(found);
}
Aside::~Aside() {
  if (stream != nullptr) sk::detail::finish(cudaStreamDestroy(static_cast<cudaStream_t>(stream)));
  if (previous_ >= 0) sk::detail::finish(cudaSetDevice(previous_));
  auto mode = static_cast<cudaStreamCaptureMode>(mode_);
  sk::detail::finish(cudaThreadExchangeStreamCaptureMode(&mode));
}

const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
int zero_async(void* p, int64_t bytes, void* stream) {
  return sk::detail::finish(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#endif

}  // namespace seqkernels
