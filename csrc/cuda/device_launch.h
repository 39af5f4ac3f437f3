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
};

#ifdef SK_EMULATE

template <typename... P, typename... A>
int launch(void (*kernel)(P...), const LaunchConfig& config, A... args) {
  const std::tuple<P...> arguments{static_cast<P>(args)...};
  return emu::launch(
      {reinterpret_cast<void*>(kernel), emu::invoke<P...>, &arguments, sizeof(arguments)},
      config.grid, config.block, config.shared_bytes, config.cluster, config.cooperative);
}
// Clusters (or blocks, without clusters) of `kernel` that the device can hold at once.
template <typename... P>
int max_resident(void (*)(P...), const LaunchConfig& config, int* clusters) {
  return emu::max_resident(config.block, config.shared_bytes, config.cluster, clusters);
}

#else

namespace detail {
inline int finish(cudaError_t error) {
  // Reading it clears a non-sticky error, so that the next check of the caller is not confused.
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<int>(error);
}
template <typename... P>
cudaError_t prepare(void (*kernel)(P...), const LaunchConfig& config, cudaLaunchConfig_t* launch,
                    cudaLaunchAttribute (&attributes)[2]) {
  const void* function = reinterpret_cast<const void*>(kernel);
  // 48 KB are granted without asking.
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(config.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  if (config.cluster > 8) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
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

template <typename... P, typename... A>
int launch(void (*kernel)(P...), const LaunchConfig& config, A... args) {
  cudaLaunchConfig_t launch;
  cudaLaunchAttribute attributes[2];
  cudaError_t error = detail::prepare(kernel, config, &launch, attributes);
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
