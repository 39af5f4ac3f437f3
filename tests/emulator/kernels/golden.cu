// One small kernel for every wrapper in device.h and its parts, and for the warp functions that the
// emulator defines. The same file runs in the emulator and on a GPU: a difference is a mistake in a
// wrapper or in its emulation.
#include "cuda/ptx/device.h"

namespace {

constexpr int kWarp = 32;

// Fragments. matrices [32, 8] of 16 bits in, words [N, 32] out: 4 matrices of 8x8, one after
// another.
template <int N>
__global__ void golden_ldmatrix(const uint16_t* matrices, uint32_t* words) {
  SK_SHARED(shared);
  auto* rows = reinterpret_cast<uint16_t*>(shared);
  const int lane = sk::lane_id();
  for (int i = 0; i < 8; ++i) rows[lane * 8 + i] = matrices[lane * 8 + i];
  __syncthreads();
  uint32_t r[N];
  sk::ldmatrix(r, rows + lane * 8);
  for (int i = 0; i < N; ++i) words[i * kWarp + lane] = r[i];
}

// d [16, 8] += a [16, 16] b [8, 16]^T, fragments by ldmatrix or gathered as device_mma.h states.
template <typename T>
__global__ void golden_mma16(const T* a, const T* b, float* d, int gather) {
  SK_SHARED(shared);
  T* tile_a = reinterpret_cast<T*>(shared);
  T* tile_b = tile_a + 256;
  const int lane = sk::lane_id(), group = lane / 4, quad = lane % 4;
  for (int i = lane; i < 256; i += kWarp) tile_a[i] = a[i];
  for (int i = lane; i < 128; i += kWarp) tile_b[i] = b[i];
  __syncthreads();
  uint32_t fragment_a[4], fragment_b[2];
  if (gather) {
    for (int i = 0; i < 4; ++i) {
      memcpy(&fragment_a[i], tile_a + (group + i % 2 * 8) * 16 + 2 * quad + i / 2 * 8, 4);
    }
    for (int i = 0; i < 2; ++i) memcpy(&fragment_b[i], tile_b + group * 16 + 2 * quad + i * 8, 4);
  } else {
    sk::ldmatrix(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
    sk::ldmatrix(fragment_b, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  }
  float* corner = d + group * 8 + 2 * quad;
  float sum[4] = {corner[0], corner[1], corner[64], corner[65]};
  sk::mma_m16n8k16<T>(sum, fragment_a, fragment_b);
  corner[0] = sum[0], corner[1] = sum[1], corner[64] = sum[2], corner[65] = sum[3];
}

// d [16, 8] += a [16, 8] b [8, 8]^T in TF32.
__global__ void golden_mma_tf32(const float* a, const float* b, float* d, int gather) {
  SK_SHARED(shared);
  auto* tile_a = reinterpret_cast<float*>(shared);
  float* tile_b = tile_a + 128;
  const int lane = sk::lane_id(), group = lane / 4, quad = lane % 4;
  for (int i = lane; i < 128; i += kWarp) tile_a[i] = a[i];
  for (int i = lane; i < 64; i += kWarp) tile_b[i] = b[i];
  __syncthreads();
  uint32_t fragment_a[4], fragment_b[2];
  if (gather) {
    for (int i = 0; i < 4; ++i) {
      memcpy(&fragment_a[i], tile_a + (group + i % 2 * 8) * 8 + quad + i / 2 * 4, 4);
    }
    for (int i = 0; i < 2; ++i) memcpy(&fragment_b[i], tile_b + group * 8 + quad + i * 4, 4);
  } else {
    sk::ldmatrix(fragment_a, tile_a + lane % 16 * 8 + lane / 16 * 4);
    sk::ldmatrix(fragment_b, tile_b + lane % 8 * 8 + lane / 8 % 2 * 4);
  }
  float* corner = d + group * 8 + 2 * quad;
  float sum[4] = {corner[0], corner[1], corner[64], corner[65]};
  sk::mma_m16n8k8_tf32(sum, fragment_a, fragment_b);
  corner[0] = sum[0], corner[1] = sum[1], corner[64] = sum[2], corner[65] = sum[3];
}

// x [n] in; every function's results out, y [5, n] and bits [n].
__global__ void golden_functions(const float* x, float* y, uint32_t* bits, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    y[0 * n + i] = sk::exp_fast(x[i]);
    y[1 * n + i] = sk::sigmoid_fast(x[i]);
    y[2 * n + i] = sk::tanh_fast(x[i]);
    y[3 * n + i] = sk::tanh_approx(x[i]);
    y[4 * n + i] = sk::fma(x[i], x[i], -1.0f);
    bits[i] = sk::to_tf32(x[i]);
  }
}

// x [n] in; y [n] out, each through one value of T.
template <typename T>
__global__ void golden_conversions(const float* x, float* y, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = sk::to_float(sk::from_float<T>(x[i]));
}

// x [32] in, y [10, 32] out.
__global__ void golden_warp(const int* x, int* y) {
  const int lane = sk::lane_id(), value = x[lane];
  y[0 * kWarp + lane] = __shfl_sync(~0u, value, lane * 7 + 3);
  y[1 * kWarp + lane] = __shfl_sync(~0u, value, 5, 8);
  y[2 * kWarp + lane] = __shfl_xor_sync(~0u, value, 9);
  y[3 * kWarp + lane] = __shfl_up_sync(~0u, value, 3);
  y[4 * kWarp + lane] = __shfl_down_sync(~0u, value, 3, 16);
  y[5 * kWarp + lane] = static_cast<int>(__ballot_sync(~0u, value > 16));
  y[6 * kWarp + lane] = __any_sync(~0u, value == 31) + 2 * __any_sync(~0u, value == 32);
  y[7 * kWarp + lane] = __all_sync(~0u, value < 32) + 2 * __all_sync(~0u, value < 31);
  y[8 * kWarp + lane] = sk::warp_sum(value);
  y[9 * kWarp + lane] = -1;
  if (lane & 4) y[9 * kWarp + lane] = __shfl_xor_sync(0xf0f0f0f0u, value, 8);
}

// clocks [2, 32] out: before and after a barrier.
__global__ void golden_clock(int64_t* clocks) {
  clocks[sk::lane_id()] = sk::clock64();
  __syncwarp();
  clocks[kWarp + sk::lane_id()] = sk::clock64();
}

// x [64] in, y [3, 64] out: copies of 16 bytes in two groups, every third of the first masked.
__global__ void golden_cp_async(const float* x, float* y) {
  SK_SHARED(shared);
  auto* rows = reinterpret_cast<float*>(shared);
  const int thread = threadIdx.x;
  if (thread < 16) sk::cp_async_16(rows + thread * 4, x + thread * 4, thread % 3 != 0);
  sk::cp_async_commit();
  if (thread < 16) sk::cp_async_16(rows + 64 + thread * 4, x + thread * 4);
  sk::cp_async_commit();
  sk::cp_async_wait<1>();
  if (thread < 16) {
    for (int i = 0; i < 4; ++i) y[thread * 4 + i] = rows[thread * 4 + i];
  }
  sk::cp_async_wait<0>();
  __syncthreads();
  y[64 + thread] = rows[64 + (thread ^ 33)];
  y[128 + thread] = sk::load_l2(x + thread);
}

// x [T] in, y [T] out: warp 0 hands values to warp 1 through one cell, by a pair of named barriers.
__global__ void golden_named_barriers(const int* x, int* y, int T) {
  SK_SHARED(shared);
  auto* cell = reinterpret_cast<int*>(shared);
  for (int t = 0; t < T; ++t) {
    if (sk::warp_id() == 0) {
      if (t > 0) sk::named_barrier_sync(2, 64);
      if (sk::lane_id() == 0) *cell = x[t];
      sk::named_barrier_arrive(1, 64);
    } else {
      sk::named_barrier_sync(1, 64);
      if (sk::lane_id() == t % kWarp) y[t] = *cell + 1;
      if (t + 1 < T) sk::named_barrier_arrive(2, 64);
    }
  }
}

// y [T, 32] out: 32 arrivals a phase; every lane reads its neighbour's value after the wait.
__global__ void golden_mbarrier(int* y, int T) {
  SK_SHARED(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(shared);
  auto* cells = reinterpret_cast<int*>(shared + 16);
  const int lane = sk::lane_id();
  if (lane == 0) {
    sk::mbarrier_init(&barriers[0], kWarp);
    sk::mbarrier_init(&barriers[1], kWarp);
    sk::mbarrier_init_fence();
  }
  __syncthreads();
  for (int t = 0; t < T; ++t) {
    cells[lane] = 100 * t + lane;
    sk::mbarrier_arrive(&barriers[0]);
    sk::mbarrier_wait(&barriers[0], t & 1);
    y[t * kWarp + lane] = cells[lane ^ 1];
    sk::mbarrier_arrive(&barriers[1]);
    while (!sk::mbarrier_try_wait(&barriers[1], t & 1)) sk::spin_yield();
  }
}

// x [32 blocks] words in; y [7, 32 blocks] out: block r receives the row of its left neighbour in
// the cluster, in every way there is. Last row: rank and size.
__global__ void golden_cluster(const uint32_t* x, uint32_t* y) {
  SK_SHARED(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(shared);
  auto* own = reinterpret_cast<uint32_t*>(shared + 128);
  uint32_t* rows = own + 32;  // [7, 32], a row of 128 bytes for each way
  const int lane = sk::lane_id(), total = kWarp * gridDim.x, index = blockIdx.x * kWarp + lane;
  const unsigned right = (sk::cluster_rank() + 1) % sk::cluster_size();
  if (lane == 0) {
    sk::mbarrier_init(&barriers[0], 1);      // asynchronous data
    sk::mbarrier_init(&barriers[1], kWarp);  // plain remote stores
    sk::mbarrier_init(&barriers[2], 1);      // from global memory
    sk::mbarrier_init_fence();
  }
  own[lane] = x[index];
  sk::async_proxy_fence();
  sk::cluster_arrive();
  sk::cluster_wait();

  const uint32_t barrier = sk::cluster_address(sk::shared_address(&barriers[0]), right);
  const uint32_t target = sk::cluster_address(sk::shared_address(rows), right);
  if (lane == 0) {
    sk::mbarrier_arrive_expect_tx(&barriers[0], 4 * 128);
    sk::mbarrier_arrive_expect_tx(&barriers[2], 128);
    sk::bulk_copy_to_cluster(target, own, 128, barrier);
    sk::bulk_copy_from_global(rows + 5 * 32, x + blockIdx.x * kWarp, 128, &barriers[2]);
  }
  sk::store_async(target + 128 + 4 * lane, own[lane], barrier);
  if (lane < 16) {
    sk::store_async(target + 256 + 8 * lane, make_uint2(own[2 * lane], own[2 * lane + 1]), barrier);
  }
  if (lane < 8) {
    const uint4 four =
        make_uint4(own[4 * lane], own[4 * lane + 1], own[4 * lane + 2], own[4 * lane + 3]);
    sk::store_async(target + 384 + 16 * lane, four, barrier);
    sk::store_cluster(target + 512 + 16 * lane, four);
  }
  sk::store_cluster(target + 768 + 4 * lane, own[lane]);
  sk::mbarrier_arrive_cluster(sk::cluster_address(sk::shared_address(&barriers[1]), right));
  while (!sk::mbarrier_try_wait_cluster(&barriers[0], 0)) sk::spin_yield();
  sk::mbarrier_wait_cluster(&barriers[1], 0);
  sk::mbarrier_wait(&barriers[2], 0);
  for (int way = 0; way < 7; ++way) y[way * total + index] = rows[way * 32 + lane];
  y[7 * total + index] = sk::cluster_rank() * 100 + sk::cluster_size();
  sk::cluster_sync();
}

// words [blocks], wide [blocks] zeros, counter [3] zeros, y [4, blocks] out.
__global__ void golden_global(uint64_t* words, sk::Word128* wide, uint32_t* counter, uint64_t* y) {
  const int block = blockIdx.x, blocks = gridDim.x, next = (block + 1) % blocks;
  if (threadIdx.x == 0) {
    sk::store_relaxed(&words[block], uint64_t(block + 1) << 32 | 7u);
    sk::store_relaxed(&wide[block], sk::Word128{uint64_t(block), ~uint64_t(block)});
    uint64_t word;
    while ((word = sk::load_relaxed(&words[next])) == 0) sk::spin_yield();
    sk::Word128 two;
    while ((two = sk::load_relaxed(&wide[next])).high == 0) sk::spin_yield();
    y[0 * blocks + block] = word;
    y[1 * blocks + block] = two.low ^ two.high;
    sk::add_release(&counter[0], 2);
    sk::wait_at_least(&counter[0], 2 * blocks);
    y[2 * blocks + block] = sk::load_acquire(&counter[0]);
  }
  sk::grid_barrier(&counter[1], blocks, 1);
  if (block == 0 && threadIdx.x == 0) sk::store_release(&counter[2], 42);
  sk::grid_barrier(&counter[1], blocks, 2);
  if (threadIdx.x == 1) y[3 * blocks + block] = sk::load_acquire(&counter[2]);
}

sk::LaunchConfig config(int blocks, int threads, size_t shared_bytes, void* stream) {
  sk::LaunchConfig config{dim3(blocks), dim3(threads)};
  config.shared_bytes = shared_bytes;
  config.stream = stream;
  return config;
}

}  // namespace

extern "C" {

int test_ldmatrix(const uint16_t* matrices, uint32_t* words, int n, void* stream) {
  const sk::LaunchConfig c = config(1, kWarp, 512, stream);
  switch (n) {
    case 1:
      return sk::launch(golden_ldmatrix<1>, c, matrices, words);
    case 2:
      return sk::launch(golden_ldmatrix<2>, c, matrices, words);
    case 4:
      return sk::launch(golden_ldmatrix<4>, c, matrices, words);
    default:
      return -1;
  }
}
int test_mma_half(const __half* a, const __half* b, float* d, int gather, void* stream) {
  return sk::launch(golden_mma16<__half>, config(1, kWarp, 768, stream), a, b, d, gather);
}
int test_mma_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d, int gather,
                      void* stream) {
  return sk::launch(golden_mma16<__nv_bfloat16>, config(1, kWarp, 768, stream), a, b, d, gather);
}
int test_mma_tf32(const float* a, const float* b, float* d, int gather, void* stream) {
  return sk::launch(golden_mma_tf32, config(1, kWarp, 768, stream), a, b, d, gather);
}
int test_functions(const float* x, float* y, uint32_t* bits, int n, void* stream) {
  return sk::launch(golden_functions, config(1, 64, 0, stream), x, y, bits, n);
}
int test_conversions_half(const float* x, float* y, int n, void* stream) {
  return sk::launch(golden_conversions<__half>, config(1, 64, 0, stream), x, y, n);
}
int test_conversions_bfloat16(const float* x, float* y, int n, void* stream) {
  return sk::launch(golden_conversions<__nv_bfloat16>, config(1, 64, 0, stream), x, y, n);
}
int test_warp(const int* x, int* y, void* stream) {
  return sk::launch(golden_warp, config(1, kWarp, 0, stream), x, y);
}
int test_clock(int64_t* clocks, void* stream) {
  return sk::launch(golden_clock, config(1, kWarp, 0, stream), clocks);
}
int test_cp_async(const float* x, float* y, void* stream) {
  return sk::launch(golden_cp_async, config(1, 64, 512, stream), x, y);
}
int test_named_barriers(const int* x, int* y, int T, void* stream) {
  return sk::launch(golden_named_barriers, config(1, 64, 4, stream), x, y, T);
}
int test_mbarrier(int* y, int T, void* stream) {
  return sk::launch(golden_mbarrier, config(1, kWarp, 16 + 4 * kWarp, stream), y, T);
}
int test_cluster(const uint32_t* x, uint32_t* y, int blocks, int cluster, void* stream) {
  sk::LaunchConfig c = config(blocks, kWarp, 128 + 8 * 128, stream);
  c.cluster = cluster;
  return sk::launch(golden_cluster, c, x, y);
}
int test_global(uint64_t* words, sk::Word128* wide, uint32_t* counter, uint64_t* y, int blocks,
                void* stream) {
  sk::LaunchConfig c = config(blocks, 64, 0, stream);
  c.cooperative = true;
  return sk::launch(golden_global, c, words, wide, counter, y);
}
// How many clusters of this size and shared memory fit, or a negative error code.
int test_max_resident(int cluster, int shared_bytes) {
  sk::LaunchConfig c = config(cluster, kWarp, shared_bytes, nullptr);
  c.cluster = cluster;
  int clusters = 0;
  const int code = sk::max_resident(golden_cluster, c, &clusters);
  return code ? -code : clusters;
}

}  // extern "C"
