// Wrong uses of warp and block instructions, one at a time. x [64]: one block of two warps.
#include "cuda/ptx/device.h"

namespace {

enum Bug {
  kNone,
  kNotInMask,        // a lane shuffles with a mask that leaves it out
  kSourceOutside,    // a lane reads from one that the mask leaves out
  kMasksDisagree,    // the two halves of a warp name different, overlapping masks
  kLaneMissing,      // the mask names a lane that never comes
  kDifferentPlaces,  // lanes of one mask meet at different shuffles
  kWarpRace,         // lanes read each other's shared memory without __syncwarp
  kCounts,           // a named barrier with two counts
  kPartialMatrix,    // half a warp executes a matrix load
  kMisaligned,       // a copy of 16 bytes to an address aligned to 4
  kEarlyReuse,       // a copy's destination is written while the copy is on its way
  kCopyAtExit,       // a thread exits with a copy on its way
};

__global__ void warp_bugs(float* x, int bug) {
  SK_SHARED(shared);
  auto* row = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x, lane = sk::lane_id();
  float value = x[thread];
  row[thread] = value;
  __syncthreads();
  switch (bug) {
    case kNone:
      if (lane < 16)
        value += __shfl_xor_sync(0xffffu, value, 8) - __shfl_sync(0xffffu, value, lane ^ 8);
      break;
    case kNotInMask:
      value += __shfl_xor_sync(0xffffu, value, 8);
      break;
    case kSourceOutside:
      if (lane < 16) value += __shfl_xor_sync(0xffffu, value, 16);
      break;
    case kMasksDisagree:
      value += __shfl_xor_sync(lane < 16 ? ~0u : 0xfffffff0u, value, 1);
      break;
    case kLaneMissing:
      if (lane != 5) value += __shfl_xor_sync(~0u, value, 1);
      __syncthreads();
      break;
    case kDifferentPlaces:
      if (lane < 16) {
        value += __shfl_xor_sync(~0u, value, 1);
      } else {
        value -= __shfl_xor_sync(~0u, value, 1);
      }
      break;
    case kWarpRace:
      row[thread] = 2 * value;
      value = row[thread ^ 1];
      break;
    case kCounts:
      sk::named_barrier_sync(1, thread < 32 ? 64 : 32);
      break;
    case kPartialMatrix:
      if (lane < 16) {
        uint32_t r[1];
        sk::ldmatrix(r, row);
        value = __uint_as_float(r[0]);
      }
      __syncthreads();
      break;
    case kMisaligned:
      sk::cp_async_16(row + 1, x);
      sk::cp_async_commit();
      sk::cp_async_wait<0>();
      break;
    case kEarlyReuse:
      if (thread < 16) sk::cp_async_16(row + 4 * thread, x + 4 * thread);
      sk::cp_async_commit();
      row[thread] = 0.0f;
      sk::cp_async_wait<0>();
      break;
    case kCopyAtExit:
      if (thread < 16) sk::cp_async_16(row + 4 * thread, x + 4 * thread);
      sk::cp_async_commit();
      break;
  }
  x[thread] = value;
}

}  // namespace

extern "C" int test_warp_bugs(float* x, int bug, void* stream) {
  sk::LaunchConfig config{dim3(1), dim3(64)};
  config.shared_bytes = 64 * sizeof(float);
  config.stream = stream;
  return sk::launch(warp_bugs, config, x, bug);
}
