// Everything a kernel may ask of the machine. This header holds threads, barriers and clusters, and
// includes device_launch.h (launches), device_mma.h (matrix fragments, conversions, fast
// functions), device_spin.h (loops that wait) and device_async.h (asynchronous copies, exchange
// between blocks). There is no PTX anywhere else.
//
// Every wrapper has two bodies: PTX, and with -DSK_EMULATE a call into tests/emulator, which runs
// the unchanged .cu file on the CPU. Kernels use CUDA's own names for __syncthreads, __syncwarp,
// shuffles, votes and threadIdx, which the emulator defines, and no other intrinsic outside these
// headers.
//
// Rules: shared memory only through SK_SHARED; every loop that waits for another block counts what
// it missed in a sk::Polls, one that waits for another thread calls spin_yield(); data crosses
// blocks only by a release and an acquire, or inside a word with a flag.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef SK_EMULATE
#include "emu_cuda.h"
// Where a wrapper was called, for reports; a default argument, so that kernels never write it.
#define SK_PLACE emu::Place place = {__builtin_FILE(), __builtin_LINE()}
#define SK_AND_PLACE , SK_PLACE
#define SK_DEVICE inline
#define SK_SHARED(name) char* name = emu::shared_memory()
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <utility>
#define SK_PLACE
#define SK_AND_PLACE
#define SK_DEVICE __device__ __forceinline__
// The block's dynamic shared memory, aligned to 128 bytes.
#define SK_SHARED(name) extern __shared__ __align__(128) char name[]
// Clusters, st.async and transaction barriers need sm_90. Older architectures still compile every
// kernel, and trap if the host launches one that it should not.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SK_PTX90(...) __trap()
#else
#define SK_PTX90(...) asm volatile(__VA_ARGS__)
#endif
#endif

#include "cuda/ptx/device_spin.h"
// In this order: launches of a build with a limit tell the kernels where to leave their records.
#include "cuda/ptx/device_launch.h"
#include "cuda/ptx/device_mma.h"

namespace sk {

// Threads.

SK_DEVICE int lane_id() { return threadIdx.x & 31; }
SK_DEVICE int warp_id() { return threadIdx.x >> 5; }

template <typename T>
SK_DEVICE T warp_sum(T value SK_AND_PLACE) {
#ifdef SK_EMULATE
  for (int o = 16; o; o >>= 1) value += __shfl_xor_sync(~0u, value, o, 32, place);
#else
#pragma unroll
  for (int o = 16; o; o >>= 1) value += __shfl_xor_sync(~0u, value, o);
#endif
  return value;
}

// Named barriers 1..15 of a block; 0 is __syncthreads. `threads` counts everyone who syncs or
// arrives, a multiple of 32, the same in every call of one phase. Orders memory as __syncthreads
// does; arrive does not wait.
SK_DEVICE void named_barrier_sync(int id, int threads SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::named_barrier(id, threads, true, place);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
SK_DEVICE void named_barrier_arrive(int id, int threads SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::named_barrier(id, threads, false, place);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// In every loop that waits for another thread. Nothing on the GPU; lets the others run here.
SK_DEVICE void spin_yield(SK_PLACE) {
#ifdef SK_EMULATE
  emu::spin(place);
#endif
}

// Clocks of the multiprocessor since some moment; differences within a block are durations.
SK_DEVICE int64_t clock64() {
#ifdef SK_EMULATE
  return emu::clock64();
#else
  int64_t clocks;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(clocks)::"memory");
  return clocks;
#endif
}

// Shared memory addresses. A 32-bit address in the window of the own cluster: shared_address()
// names the own block, cluster_address() moves an address to block `rank`; byte offsets may be
// added.

SK_DEVICE uint32_t shared_address(const void* p) {
#ifdef SK_EMULATE
  return emu::shared_address(p);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}
SK_DEVICE uint32_t cluster_address(uint32_t address, unsigned rank) {
#ifdef SK_EMULATE
  return emu::cluster_address(address, rank);
#else
  uint32_t mapped = 0;
  SK_PTX90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
#endif
}

// Clusters.

SK_DEVICE unsigned cluster_rank() {
#ifdef SK_EMULATE
  return emu::cluster_rank();
#else
  unsigned rank = 0;
  SK_PTX90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}
SK_DEVICE unsigned cluster_size() {
#ifdef SK_EMULATE
  return emu::cluster_size();
#else
  unsigned size = 1;
  SK_PTX90("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}
// Barrier over all threads of the cluster. Arrive releases and wait acquires, at cluster scope. A
// block may exit only after its peers have finished with its shared memory: end with cluster_sync.
SK_DEVICE void cluster_arrive(SK_PLACE) {
#ifdef SK_EMULATE
  emu::cluster_arrive(place);
#else
  SK_PTX90("barrier.cluster.arrive.release.aligned;" :: : "memory");
#endif
}
SK_DEVICE void cluster_wait(SK_PLACE) {
#ifdef SK_EMULATE
  emu::cluster_wait(place);
#else
  SK_PTX90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
#endif
}
SK_DEVICE void cluster_sync(SK_PLACE) {
#ifdef SK_EMULATE
  emu::cluster_arrive(place);
  emu::cluster_wait(place);
#else
  cluster_arrive();
  cluster_wait();
#endif
}
// Plain stores into the shared memory of a block of the cluster, seen after a cluster barrier or an
// mbarrier_arrive_cluster and an mbarrier_wait_cluster.
SK_DEVICE void store_cluster(uint32_t address, uint32_t value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_cluster(address, value, place);
#else
  SK_PTX90("st.shared::cluster.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
#endif
}
SK_DEVICE void store_cluster(uint32_t address, uint4 value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_cluster(address, value, place);
#else
  SK_PTX90("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
           "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
#endif
}
// Asynchronous stores: the data arrives at some later time and then counts its bytes on the
// transaction barrier `mbarrier`, which lies in the same block's shared memory as `address`.
// Whoever waits there with mbarrier_wait_cluster sees the data; nobody else does.
SK_DEVICE void store_async(uint32_t address, uint32_t value, uint32_t mbarrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_async(address, value, mbarrier, place);
#else
  SK_PTX90("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
               address),
           "r"(value), "r"(mbarrier) : "memory");
#endif
}
SK_DEVICE void store_async(uint32_t address, uint2 value, uint32_t mbarrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_async(address, value, mbarrier, place);
#else
  SK_PTX90(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::
          "r"(address),
      "r"(value.x), "r"(value.y), "r"(mbarrier) : "memory");
#endif
}
SK_DEVICE void store_async(uint32_t address, uint4 value, uint32_t mbarrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_async(address, value, mbarrier, place);
#else
  SK_PTX90(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(mbarrier) : "memory");
#endif
}

}  // namespace sk

#include "cuda/ptx/device_async.h"
