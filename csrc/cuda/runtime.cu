// The few calls of the CUDA runtime that the bindings need beside launches. No kernels.
#include "device.h"
#include "launch.h"

namespace seqkernels {

#ifdef SK_EMULATE

extern "C" const char* emu_error();

int query_device(DeviceFacts* facts) {
  *facts = {9, 0, 132, 227 * 1024};
  return 0;
}
const char* error_name(int) { return emu_error(); }
int zero_async(void* p, int64_t bytes, void*) {
  memset(p, 0, bytes);
  return 0;
}

#else

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
  return sk::detail::finish(error);
}
const char* error_name(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
int zero_async(void* p, int64_t bytes, void* stream) {
  return sk::detail::finish(cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#endif

}  // namespace seqkernels
