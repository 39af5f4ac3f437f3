// The exchange of the persistent kernels alone: the time of a round inside a cluster and through
// L2, for every way in which blocks may pass on their data (exchanges.h).
//
// One block a multiprocessor and 256 threads, as in the real kernels. In every round each block
// publishes new data, collects what the others have published, and compares it with what it must
// be: an exchange that loses or confuses data cannot look fast. All-gather: a block sends one slice
// to all others. Reduce-scatter: it sends each of them a slice of its own, in float32, and adds up
// what it receives in the order of ranks.
#include "exchanges.h"

namespace {

using namespace micro;

// More than half of what a multiprocessor has: a second block does not fit.
constexpr int kLeastShared = 120 << 10;

// Compares what has arrived with what it must be.
template <Pattern kPattern>
struct Check {
  const Arguments& a;
  const Member& m;
  int next;  // all-gather: the chunk that this thread looks at next
  uint32_t wrong = 0;

  SK_DEVICE Check(const Arguments& a, const Member& m)
      : a(a), m(m), next(m.thread % (a.blocks << a.shift)) {}

  SK_DEVICE void round(int round, const char* received) {
    if constexpr (kPattern == kAllGather) {
      for (int i = 0; i < a.checked; ++i) {
        const uint4 got = reinterpret_cast<const uint4*>(received)[next];
        const uint4 want =
            chunk_of<kPattern>(round, m.group, next >> a.shift, 0, next & (m.chunks - 1));
        wrong += got.x != want.x || got.y != want.y || got.z != want.z || got.w != want.w;
        for (next += kThreads; next >= a.blocks << a.shift;) next -= a.blocks << a.shift;
      }
    } else {
      for (int i = m.thread; i < m.bytes / 4; i += kThreads) {
        float sum = 0.0f;
#pragma unroll 8
        for (int sender = 0; sender < a.blocks; ++sender) {
          sum += reinterpret_cast<const float*>(received + sender * m.bytes)[i];
        }
        const float first = __uint_as_float(word_of<kPattern>(round, m.group, 0, m.own, i));
        wrong += sum != a.blocks * first + 3 * (a.blocks * (a.blocks - 1) / 2);
      }
    }
  }
};

template <typename Transport, Pattern kPattern>
__global__ void __launch_bounds__(kThreads, 1) exchange_kernel(const Arguments a) {
  SK_SHARED(shared);
  const Member m = {int(blockIdx.x) / a.blocks,
                    int(blockIdx.x) % a.blocks,
                    int(threadIdx.x),
                    sk::warp_id(),
                    sk::lane_id(),
                    1 << a.shift,
                    kChunk << a.shift};
  const Transport transport(a, m, shared);
  Check<kPattern> check(a, m);
  for (int round = 0; round < a.rounds; ++round) {
    const Outgoing<kPattern> data{a, m, round, shared + a.staged + round % 2 * a.buffer};
    if constexpr (kPattern == kAllGather) data.stage(1);
    if constexpr (kPattern == kReduceScatter && Transport::kFromShared) data.stage(a.slices);
    if constexpr (Transport::kFromShared) sk::async_proxy_fence();
    __syncthreads();
    transport.publish(data, round);
    char* received = transport.received(round);
    for (int i = m.thread; i < m.chunks; i += kThreads) {
      reinterpret_cast<uint4*>(received)[m.own << a.shift | i] = data.made(m.own, i);
    }
    transport.collect(round);
    __syncthreads();
    check.round(round, received);
  }
  transport.end();
  a.wrong[blockIdx.x * kThreads + m.thread] = check.wrong;
}

// A kernel and what its launch has to know.
struct Exchange {
  void (*kernel)(Arguments);
  bool cluster, from_shared;
  int buffers;
  int (*items)(int bytes);
};
template <typename Transport, Pattern kPattern>
Exchange exchange() {
  return {exchange_kernel<Transport, kPattern>, Transport::kCluster, Transport::kFromShared,
          Transport::kBuffers, Transport::items};
}
constexpr int kTransports = 5;
template <Pattern kPattern>
Exchange exchange(int transport) {
  const Exchange all[kTransports] = {exchange<Stores, kPattern>(), exchange<BulkCopies, kPattern>(),
                                     exchange<Words<4>, kPattern>(), exchange<Words<8>, kPattern>(),
                                     exchange<Counter, kPattern>()};
  return all[transport];
}

// An exchange of groups of `blocks` blocks.
struct Launch {
  Exchange exchange;
  Arguments a = {};
  sk::LaunchConfig config;

  Launch(int transport, int pattern, int blocks, int bytes)
      : exchange(pattern == kAllGather ? ::exchange<kAllGather>(transport)
                                       : ::exchange<kReduceScatter>(transport)) {
    a.blocks = blocks;
    a.slices = pattern == kAllGather ? 1 : blocks;
    while (kChunk << a.shift < bytes) ++a.shift;
    a.items = exchange.items(bytes);
    const bool stages = pattern == kAllGather || exchange.from_shared;
    a.staged = exchange.buffers * blocks * bytes;
    // A copy from shared memory may last into the next round.
    a.buffer = exchange.from_shared ? a.slices * bytes : 0;
    a.barriers = a.staged + stages * a.slices * bytes + a.buffer;
    config.shared_bytes = a.barriers + 16 < kLeastShared ? kLeastShared : a.barriers + 16;
    config.block = dim3(kThreads);
    config.grid = dim3(blocks);
    config.cluster = exchange.cluster ? blocks : 1;
    // Blocks that wait for each other must be resident together.
    config.cooperative = !exchange.cluster;
  }
};

bool valid(int transport, int pattern, int blocks, int bytes) {
  return transport >= 0 && transport < kTransports && (pattern & ~1) == 0 && blocks > 1 &&
         bytes >= kChunk && (bytes & (bytes - 1)) == 0;
}

}  // namespace

// transport: st.async, bulk copies, words with 4 and with 8 loads in flight, a counter. pattern:
// all-gather, reduce-scatter. bytes: of a slice, a power of two from 16 on.

// facts: groups that the device can hold at once, and bytes of global memory that each needs.
extern "C" int micro_facts(int transport, int pattern, int blocks, int bytes, int64_t* facts) {
  if (!valid(transport, pattern, blocks, bytes)) return 1;  // cudaErrorInvalidValue
  const Launch launch(transport, pattern, blocks, bytes);
  int resident = 0;
  const int error = sk::max_resident(launch.exchange.kernel, launch.config, &resident);
  facts[0] = launch.exchange.cluster ? resident : resident / blocks;
  facts[1] = int64_t(2) * launch.a.slices * blocks * launch.a.items * 16;
  return error;
}

// Runs `rounds` rounds of `groups` groups; memory and counters [groups] are zeroed.
extern "C" int micro_run(int transport, int pattern, int groups, int blocks, int bytes, int rounds,
                         int checked, void* memory, uint32_t* counters, uint32_t* wrong,
                         void* stream) {
  if (!valid(transport, pattern, blocks, bytes)) return 1;
  Launch launch(transport, pattern, blocks, bytes);
  launch.a.rounds = rounds;
  launch.a.checked = checked;
  launch.a.memory = static_cast<char*>(memory);
  launch.a.counters = counters;
  launch.a.wrong = wrong;
  launch.config.grid = dim3(groups * blocks);
  launch.config.stream = stream;
  return sk::launch(launch.exchange.kernel, launch.config, launch.a);
}
