// A small persistent LSTM in bfloat16, with one planted bug at a time: what the emulator must find.
//
// A block owns 8 hidden units; its slice of weight_hh stays in shared memory. Each of its 4 warps
// computes one gate of the 8 units for up to 16 rows by mma.sync. h goes through global memory, one
// grid barrier a step. Limitations: N <= 16, H a multiple of 16.
#include "cuda/ptx/device.h"

namespace {

enum Bug {
  kNone,
  kNoCopyWait,        // cp.async is not waited for
  kNoBlockBarrier,    // other threads' copies are read without a barrier
  kOutOfBounds,       // reads rows of h that do not exist
  kBlockSkips,        // one block does not come to the grid barrier
  kNoGridBarrier,     // blocks do not wait for each other
  kUninitialised,     // one row of the products is never written
  kDivergingBarrier,  // half of a block takes another barrier
  kSharedOverrun,     // writes beyond the block's shared memory
};

constexpr int kRows = 16, kUnits = 8, kThreads = 128, kPad = 8;

// gates_x [T, N, 4H], weight_hh [4H, H], h [T + 1, N, H], c [N, H], counter [1]
__global__ void __launch_bounds__(kThreads)
    lstm_persistent(const float* gates_x, const __nv_bfloat16* weight_hh, __nv_bfloat16* h,
                    float* c, uint32_t* counter, int T, int N, int H, int bug) {
  SK_SHARED(shared);
  const int stride = H + kPad;
  auto* weights = reinterpret_cast<__nv_bfloat16*>(shared);
  auto* rows = weights + 4 * kUnits * stride;
  auto* products = reinterpret_cast<float*>(rows + kRows * stride);
  const int thread = threadIdx.x, warp = sk::warp_id(), lane = sk::lane_id();
  const int first = blockIdx.x * kUnits;

  for (int i = thread; i < 4 * kUnits * (H / 8); i += kThreads) {
    const int row = i / (H / 8), k = i % (H / 8) * 8;
    const int gate = row / kUnits, unit = first + row % kUnits;
    sk::cp_async_16(weights + row * stride + k, weight_hh + (int64_t(gate) * H + unit) * H + k);
  }
  sk::cp_async_commit();

  for (int t = 0; t < T; ++t) {
    const __nv_bfloat16* previous = h + int64_t(t) * N * H;
    for (int i = thread; i < kRows * (H / 8); i += kThreads) {
      const int row = i / (H / 8), k = i % (H / 8) * 8;
      const bool valid = row < N || (bug == kOutOfBounds && t == T - 1);
      sk::cp_async_16(rows + row * stride + k,
                      previous + int64_t(valid ? row + (bug == kOutOfBounds) * N : 0) * H + k,
                      valid);
    }
    sk::cp_async_commit();
    if (bug != kNoCopyWait) sk::cp_async_wait<0>();
    if (bug != kNoBlockBarrier) __syncthreads();
    float d[4] = {};
    for (int k = 0; k < H; k += 16) {
      uint32_t a[4], b[2];
      sk::ldmatrix(a, rows + lane % 16 * stride + k + lane / 16 * 8);
      sk::ldmatrix(b, weights + (warp * kUnits + lane % 8) * stride + k + lane / 8 % 2 * 8);
      sk::mma_m16n8k16<__nv_bfloat16>(d, a, b);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      if (bug == kUninitialised && row == 3) continue;
      products[(warp * kRows + row) * kUnits + column] = d[i];
    }
    if (bug == kSharedOverrun) products[4 * kRows * kUnits + thread] = 0.0f;
    if (bug == kDivergingBarrier && thread < 64) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    for (int i = thread; i < N * kUnits; i += kThreads) {
      const int row = i / kUnits, unit = first + i % kUnits;
      float gate[4];
      for (int g = 0; g < 4; ++g) {
        gate[g] = products[(g * kRows + row) * kUnits + i % kUnits] +
                  gates_x[(int64_t(t) * N + row) * 4 * H + g * H + unit];
      }
      const float new_c = sk::sigmoid_fast(gate[1]) * c[row * H + unit] +
                          sk::sigmoid_fast(gate[0]) * sk::tanh_fast(gate[2]);
      c[row * H + unit] = new_c;
      h[(int64_t(t + 1) * N + row) * H + unit] =
          __float2bfloat16(sk::sigmoid_fast(gate[3]) * sk::tanh_fast(new_c));
    }
    if (bug == kBlockSkips && blockIdx.x == 0) continue;
    if (bug == kNoGridBarrier) {
      __syncthreads();
    } else {
      sk::grid_barrier(counter, gridDim.x, t + 1);
    }
  }
}

}  // namespace

extern "C" int test_lstm_persistent(const float* gates_x, const void* weight_hh, void* h, float* c,
                                    uint32_t* counter, int T, int N, int H, int bug, void* stream) {
  sk::LaunchConfig config{dim3(H / kUnits), dim3(kThreads)};
  config.shared_bytes = (4 * kUnits + kRows) * (H + kPad) * 2 + 4 * kRows * kUnits * 4;
  config.stream = stream;
  config.cooperative = true;
  return sk::launch(lstm_persistent, config, gates_x, static_cast<const __nv_bfloat16*>(weight_hh),
                    static_cast<__nv_bfloat16*>(h), c, counter, T, N, H, bug);
}
