// Launching kernels and asking what fits. Included by device.h. Every function returns a
// cudaError_t as int and leaves no error behind on the thread.
#pragma once

namespace sk {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  void* stream = nullptr;    // a cudaStream_t
  unsigned cluster = 1;      // blocks of a cluster, neighbours in x; more than 8 is non-portable
  bool cooperative = false;  // refuse (an error, never a hang) a grid that cannot be co-resident
  bool trial = false;  // of a kernel that returns at once: the emulator checks and runs nothing
};

#ifdef SK_EMULATE

template <typename... P, typename... A>
int launch(void (*kernel)(P...), const LaunchConfig& config, A... args) {
  const std::tuple<P...> arguments{static_cast<P>(args)...};
  return emu::launch(
      {reinterpret_cast<void*>(kernel), emu::invoke<P...>, &arguments, sizeof(arguments)},
      config.grid, config.block, config.shared_bytes, config.cluster, config.cooperative,
      config.trial);
}
// Clusters (or blocks, without clusters) of `kernel` that the device can hold at once.
template <typename... P>
int max_resident(void (*)(P...), const LaunchConfig& config, int* clusters) {
  return emu::max_resident(config.block, config.shared_bytes, config.cluster, clusters);
}

#else

#ifdef SK_SPIN_LIMIT
// kSpinRecords of them in host memory that kernels may write; null where there is none.
SpinRecord* host_spin_records();
#endif

namespace detail {
inline int finish(cudaError_t error) {
  // Reading it clears a non-sticky error, so that the next check of the caller is not confused.
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
}
// Loads a kernel and lets it use all that its device has, once. A limit that followed the launches
// could be lowered for a small one while another thread is about to make a large one. The first
// launch may be part of a stream capture, which loading must not be.
inline cudaError_t make_ready(const void* function) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int> > ready;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (ready.count({function, device}) > 0) return cudaSuccess;
  auto mode = cudaStreamCaptureModeRelaxed;
  error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return error;
  cudaFuncAttributes found;
  error = cudaFuncGetAttributes(&found, function);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 most - static_cast<int>(found.sharedSizeBytes));
  }
  if (error == cudaSuccess && found.ptxVersion >= 90) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) ready.insert({function, device});
  cudaThreadExchangeStreamCaptureMode(&mode);
  return error;
}
#ifdef SK_SPIN_LIMIT
// Tells the kernels of this source file where to leave the records of waits that gave up.
static inline cudaError_t connect_records(cudaStream_t stream) {
  static std::set<int> connected;
  static std::mutex mutex;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (error != cudaSuccess || connected.count(device) > 0) return error;
  SpinRecord* records = host_spin_records();
  error = cudaMemcpyToSymbolAsync(spin_records, &records, sizeof(records), 0,
                                  cudaMemcpyHostToDevice, stream);
  // The first launch is most often a trial, on another stream than those that follow.
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error == cudaSuccess) connected.insert(device);
  return error;
}
#endif
template <typename... P>
cudaError_t prepare(void (*kernel)(P...), const LaunchConfig& config, cudaLaunchConfig_t* launch,
                    cudaLaunchAttribute (&attributes)[2]) {
  const cudaError_t error = make_ready(reinterpret_cast<const void*>(kernel));
  if (error != cudaSuccess) return error;
  unsigned count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  *launch = {};
  launch->gridDim = config.grid;
  launch->blockDim = config.block;
  launch->dynamicSmemBytes = config.shared_bytes;
  launch->stream = static_cast<cudaStream_t>(config.stream);
  launch->attrs = attributes;
  launch->numAttrs = count;
  return cudaSuccess;
}
}  // namespace detail

// Static, since connect_records is of one source file.
template <typename... P, typename... A>
static int launch(void (*kernel)(P...), const LaunchConfig& config, A... args) {
  cudaLaunchConfig_t launch;
  cudaLaunchAttribute attributes[2];
  cudaError_t error = detail::prepare(kernel, config, &launch, attributes);
#ifdef SK_SPIN_LIMIT
  if (error == cudaSuccess) error = detail::connect_records(launch.stream);
#endif
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&launch, kernel, P(args)...);
  return detail::finish(error);
}
// Clusters (or blocks, without clusters) of `kernel` that the device can hold at once.
template <typename... P>
int max_resident(void (*kernel)(P...), const LaunchConfig& config, int* clusters) {
  cudaLaunchConfig_t launch;
  cudaLaunchAttribute attributes[2];
  cudaError_t error = detail::prepare(kernel, config, &launch, attributes);
  if (error != cudaSuccess) return detail::finish(error);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (config.cluster > 1) {
    return detail::finish(cudaOccupancyMaxActiveClusters(clusters, function, &launch));
  }
  int device = 0, processors = 0, blocks = 0;
  error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    const int threads = config.block.x * config.block.y * config.block.z;
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads,
                                                          config.shared_bytes);
  }
  *clusters = blocks * processors;
  return detail::finish(error);
}

#endif

}  // namespace sk
