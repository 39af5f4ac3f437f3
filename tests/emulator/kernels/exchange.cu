// The three ways in which blocks exchange data, each with planted bugs: asynchronous stores into a
// cluster's shared memory, counters in global memory, and words that carry their own flag.
//
// All compute the same: a value per block and step, x_b(t + 1) = sum over blocks of x(t), modulo
// 97, plus the block's index. One warp a block.
#include "cuda/ptx/device.h"

namespace {

constexpr int kWarp = 32;

enum ClusterBug {
  kNone,
  kNoWait,         // the received values are read without waiting
  kNoClusterSync,  // peers write before a block has started
  kBytes,          // more bytes are expected than come
  kOneBuffer,      // a buffer is overwritten while a peer may still read it
  kEarlyExit,      // a block exits while stores to it are on their way
  kBlockScope,     // waits at block scope for what the cluster wrote
  kNoInit,         // the mbarrier is not initialised
  kTwoArrivals,    // arrives more often than announced
};

// x [blocks], one cluster. Values travel by store_async; receipt counts on one mbarrier a buffer.
__global__ void exchange_cluster(int* x, int T, int bug) {
  SK_SHARED(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(shared);
  auto* received = reinterpret_cast<int*>(shared + 16);  // [2, blocks]
  const int lane = sk::lane_id(), blocks = sk::cluster_size(), own = sk::cluster_rank();
  if (lane == 0 && bug != kNoInit) {
    sk::mbarrier_init(&barriers[0], 1);
    sk::mbarrier_init(&barriers[1], 1);
    sk::mbarrier_init_fence();
  }
  if (bug != kNoClusterSync) sk::cluster_sync();
  int value = x[blockIdx.x];
  for (int t = 0; t < T; ++t) {
    const int buffer = bug == kOneBuffer ? 0 : t & 1;
    const int parity = bug == kOneBuffer ? t & 1 : t / 2 & 1;
    if (lane == 0) {
      sk::mbarrier_arrive_expect_tx(&barriers[buffer], 4 * (blocks + (bug == kBytes)));
      if (bug == kTwoArrivals) sk::mbarrier_arrive(&barriers[buffer]);
    }
    if (lane < blocks) {
      sk::store_async(
          sk::cluster_address(sk::shared_address(&received[buffer * blocks + own]), lane),
          uint32_t(value), sk::cluster_address(sk::shared_address(&barriers[buffer]), lane));
    }
    if (bug == kEarlyExit && own == 0 && t == T - 1) return;
    if (bug == kBlockScope) {
      sk::mbarrier_wait(&barriers[buffer], parity);
    } else if (bug != kNoWait) {
      sk::mbarrier_wait_cluster(&barriers[buffer], parity);
    }
    value = own;
    for (int b = 0; b < blocks; ++b) value += received[buffer * blocks + b];
    value %= 97;
    // No lane may send the next step's value before all have read: two buffers make it the peers'
    // turn.
    __syncwarp();
  }
  if (lane == 0) x[blockIdx.x] = value;
  sk::cluster_sync();
}

enum GlobalBug {
  kNoCounterWait = 1,  // values are read without waiting
  kLateStore,          // the value is stored after the counter
  kTooMany,            // waits for more arrivals than come
  kNoFlagCheck,        // the flag in the word is ignored
  kNoYield,            // the polling loop does not yield
};

// x [blocks], values [2, blocks], counter [1]: plain stores, made visible by a counter.
__global__ void exchange_counter(int* x, int* values, uint32_t* counter, int T, int bug) {
  const int lane = sk::lane_id(), blocks = gridDim.x, own = blockIdx.x;
  int value = x[own];
  for (int t = 0; t < T; ++t) {
    int* step = values + t % 2 * blocks;
    if (lane == 0) {
      if (bug != kLateStore) step[own] = value;
      sk::add_release(counter, 1);
      if (bug == kLateStore) step[own] = value;
      if (bug != kNoCounterWait) sk::wait_at_least(counter, blocks * (t + 1) + (bug == kTooMany));
    }
    __syncwarp();
    value = own;
    for (int b = 0; b < blocks; ++b) value += step[b];
    value %= 97;
    __syncwarp();
  }
  if (lane == 0) x[own] = value;
}

// x [blocks], words [2, blocks] of zeros: the value below, the step's number above.
__global__ void exchange_flagged(int* x, uint64_t* words, int T, int bug) {
  const int lane = sk::lane_id(), blocks = gridDim.x, own = blockIdx.x;
  int value = x[own];
  __syncwarp();  // lane 0 writes x at the end
  for (int t = 0; t < T; ++t) {
    uint64_t* step = words + t % 2 * blocks;
    if (lane == 0) sk::store_relaxed(&step[own], uint64_t(t + 1) << 32 | uint32_t(value));
    int sum = 0;
    for (int b = lane; b < blocks; b += kWarp) {
      uint64_t word = sk::load_relaxed(&step[b]);
      while (bug != kNoFlagCheck && word >> 32 != uint64_t(t + 1 + (bug == kTooMany))) {
        if (bug != kNoYield) sk::spin_yield();
        word = sk::load_relaxed(&step[b]);
      }
      sum += int(word);
    }
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(~0u, sum, o);
    value = (own + sum) % 97;
  }
  if (lane == 0) x[own] = value;
}

}  // namespace

extern "C" int test_exchange_cluster(int* x, int blocks, int T, int bug, void* stream) {
  sk::LaunchConfig config{dim3(blocks), dim3(kWarp)};
  config.shared_bytes = 16 + 2 * blocks * sizeof(int);
  config.stream = stream;
  config.cluster = blocks;
  return sk::launch(exchange_cluster, config, x, T, bug);
}
extern "C" int test_exchange_counter(int* x, int* values, uint32_t* counter, int blocks, int T,
                                     int bug, void* stream) {
  sk::LaunchConfig config{dim3(blocks), dim3(kWarp)};
  config.stream = stream;
  config.cooperative = true;
  return sk::launch(exchange_counter, config, x, values, counter, T, bug);
}
extern "C" int test_exchange_flagged(int* x, uint64_t* words, int blocks, int T, int bug,
                                     void* stream) {
  sk::LaunchConfig config{dim3(blocks), dim3(kWarp)};
  config.stream = stream;
  config.cooperative = true;
  return sk::launch(exchange_flagged, config, x, words, T, bug);
}
