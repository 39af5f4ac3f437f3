// The ways in which the blocks of a group pass on data, for micro.cu: asynchronous stores and bulk
// copies inside a cluster, flagged words and a counter through L2. All have one interface, and all
// leave a round's slices in shared memory, by sender, but for the own one.
//
// Why a buffer may be written again: as in csrc/cuda/persistent/exchange.h. A block publishes round
// r after it has collected round r - 1, which its peers published after they had read all of round
// r - 2.
#pragma once
#include "cuda/ptx/device.h"

namespace micro {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChunk = 16;  // bytes

enum Pattern { kAllGather, kReduceScatter };

struct Arguments {
  int rounds;
  int blocks, slices;  // of a group; that a block sends: 1, or one for each block
  int shift;           // log2 of the chunks of a slice
  int items;           // through L2: pieces of 16 bytes that a slice takes
  int checked;         // all-gather: chunks that a thread compares each round
  int staged, buffer;  // shared memory: where slices are staged, and bytes between two buffers
  int barriers;        // the same: two transaction barriers
  char* memory;        // through L2: zeroed
  uint32_t* counters;  // [groups], zeroed
  uint32_t* wrong;     // [blocks of the grid, kThreads]: comparisons that failed
};

// What a thread knows of its place, and the sizes of a slice.
struct Member {
  int group, own;  // rank in the group
  int thread, warp, lane;
  int chunks, bytes;
};

// Word `index` of what block `sender` sends to block `owner`, and the four words of a chunk. Those
// of a reduce-scatter are whole numbers: their sums are exact.
template <Pattern kPattern>
SK_DEVICE uint32_t word_of(int round, int group, int sender, int owner, int index) {
  if constexpr (kPattern == kAllGather) {
    return round * 0x9e3779b1u + (group << 20 | sender << 12 | index);
  } else {
    return __float_as_uint(float((round & 1023) + 7 * group + 3 * sender + 5 * owner + index));
  }
}
template <Pattern kPattern>
SK_DEVICE uint4 chunk_of(int round, int group, int sender, int owner, int i) {
  const uint32_t w = word_of<kPattern>(round, group, sender, owner, 4 * i);
  if constexpr (kPattern == kAllGather) return make_uint4(w, w + 1, w + 2, w + 3);
  const float x = __uint_as_float(w);
  return make_uint4(w, __float_as_uint(x + 1), __float_as_uint(x + 2), __float_as_uint(x + 3));
}

// What this block sends in a round. The slice of an all-gather is staged in shared memory, as the
// pointwise part of a step does. Those of a reduce-scatter are made where they are sent, as a
// product would leave them in registers, but for copies from shared memory.
template <Pattern kPattern>
struct Outgoing {
  const Arguments& a;
  const Member& m;
  int round;
  char* staged;

  SK_DEVICE char* place(int owner) const { return staged + (a.slices == 1 ? 0 : owner * m.bytes); }
  SK_DEVICE uint4 made(int owner, int i) const {
    return chunk_of<kPattern>(round, m.group, m.own, owner, i);
  }
  SK_DEVICE void stage(int slices) const {
    for (int owner = m.warp; owner < slices; owner += kWarps) {
      for (int i = m.lane; i < m.chunks; i += 32) {
        reinterpret_cast<uint4*>(place(owner))[i] = made(owner, i);
      }
    }
  }
  SK_DEVICE uint4 chunk(int owner, int i) const {
    return kPattern == kAllGather ? reinterpret_cast<const uint4*>(staged)[i] : made(owner, i);
  }
  SK_DEVICE uint32_t word(int owner, int i) const {
    return kPattern == kAllGather ? reinterpret_cast<const uint32_t*>(staged)[i]
                                  : word_of<kPattern>(round, m.group, m.own, owner, i);
  }
};

// Straight into the peers' shared memory, counted by a transaction barrier; two buffers in turn.
class Cluster {
 public:
  static constexpr bool kCluster = true;
  static constexpr int kBuffers = 2;
  static int items(int) { return 0; }

  SK_DEVICE Cluster(const Arguments& a, const Member& m, char* shared)
      : a_(a), m_(m), shared_(shared), barriers_(reinterpret_cast<uint64_t*>(shared + a.barriers)) {
    if (m.thread == 0) {
      sk::mbarrier_init(&barriers_[0], 1);
      sk::mbarrier_init(&barriers_[1], 1);
      sk::mbarrier_init_fence();
    }
    sk::cluster_sync();
  }
  // No block may leave while a peer's stores to it are on their way.
  SK_DEVICE void end() const { sk::cluster_sync(); }

  // The slices of a round, by sender.
  SK_DEVICE char* received(int round) const { return shared_ + (round % 2) * a_.blocks * m_.bytes; }
  SK_DEVICE void collect(int round) const {
    uint64_t* barrier = &barriers_[round % 2];
    if (m_.thread == 0) sk::mbarrier_arrive_expect_tx(barrier, (a_.blocks - 1) * m_.bytes);
    sk::mbarrier_wait_cluster(barrier, round / 2 % 2);
  }

 protected:
  // Calls send(peer, its address of the own slice, its barrier), a warp for each peer.
  template <typename Send>
  SK_DEVICE void to_peers(int round, Send send) const {
    const uint32_t to = sk::shared_address(received(round) + m_.own * m_.bytes);
    const uint32_t barrier = sk::shared_address(&barriers_[round % 2]);
    for (int peer = m_.warp; peer < a_.blocks; peer += kWarps) {
      if (peer == m_.own) continue;
      send(peer, sk::cluster_address(to, peer), sk::cluster_address(barrier, peer));
    }
  }

  const Arguments& a_;
  const Member& m_;

 private:
  char* shared_;
  uint64_t* barriers_;
};

struct Stores : Cluster {
  static constexpr bool kFromShared = false;
  using Cluster::Cluster;

  template <typename Data>
  SK_DEVICE void publish(const Data& data, int round) const {
    to_peers(round, [&](int peer, uint32_t to, uint32_t barrier) {
      for (int i = m_.lane; i < m_.chunks; i += 32) {
        sk::store_async(to + i * kChunk, data.chunk(peer, i), barrier);
      }
    });
  }
};

struct BulkCopies : Cluster {
  static constexpr bool kFromShared = true;
  using Cluster::Cluster;

  template <typename Data>
  SK_DEVICE void publish(const Data& data, int round) const {
    to_peers(round, [&](int peer, uint32_t to, uint32_t barrier) {
      if (m_.lane == 0) sk::bulk_copy_to_cluster(to, data.place(peer), m_.bytes, barrier);
    });
  }
};

// Through L2: two buffers of slices in global memory, by owner and sender, and one in shared.
class Memory {
 public:
  static constexpr bool kCluster = false, kFromShared = false;
  static constexpr int kBuffers = 1;

  SK_DEVICE Memory(const Arguments& a, const Member& m, char* shared)
      : a_(a), m_(m), received_(shared) {}
  SK_DEVICE void end() const {}
  SK_DEVICE char* received(int) const { return received_; }

 protected:
  // The first of the slices that are sent to `owner`.
  template <typename T>
  SK_DEVICE T* sent_to(int owner, int round) const {
    const int groups = gridDim.x / a_.blocks, row = a_.slices == 1 ? 0 : owner;
    const int64_t slice = ((round % 2 * groups + m_.group) * a_.slices + row) * a_.blocks;
    return reinterpret_cast<T*>(a_.memory) + slice * a_.items;
  }

  const Arguments& a_;
  const Member& m_;
  char* received_;
};

// 16-byte words of data and a flag that names the round; kFlight loads are on their way before the
// first is looked at.
template <int kFlight>
class Words : public Memory {
 public:
  static constexpr int kData = 12;
  static int items(int bytes) { return (bytes + kData - 1) / kData; }

  SK_DEVICE Words(const Arguments& a, const Member& m, char* shared)
      : Memory(a, m, shared),
        first_{m.thread / a.items, m.thread % a.items},
        step_{kThreads / a.items, kThreads % a.items} {}

  template <typename Data>
  SK_DEVICE void publish(const Data& data, int round) const {
    const int last = m_.bytes / 4 - 1;
    for (Place at = first_; at.slice < a_.slices; at = next(at)) {
      if (a_.slices > 1 && at.slice == m_.own) continue;
      const int i = 3 * at.word;  // a slice may end within a word
      const uint64_t d0 = data.word(at.slice, i), d1 = data.word(at.slice, min(i + 1, last)),
                     d2 = data.word(at.slice, min(i + 2, last));
      sk::store_relaxed(sent_to<sk::Word128>(at.slice, round) + m_.own * a_.items + at.word,
                        {d1 << 32 | d0, uint64_t(flag(round)) << 32 | d2});
    }
  }

  SK_DEVICE void collect(int round) const {
    const sk::Word128* from = sent_to<sk::Word128>(m_.own, round) + m_.thread;
    for (Place at = first_; at.slice < a_.blocks;) {
      sk::Word128 word[kFlight];
      Place place[kFlight];
#pragma unroll
      for (int i = 0; i < kFlight; ++i, at = next(at)) {
        place[i] = at;
        if (wanted(at)) word[i] = sk::load_relaxed(from + i * kThreads);
      }
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        if (!wanted(place[i])) continue;
        sk::Polls polls(sk::Wait::kWords, round, place[i].slice);
        while (uint32_t(word[i].high >> 32) != flag(round)) {
          polls.missed();
          word[i] = sk::load_relaxed(from + i * kThreads);
        }
        char* slice = received_ + place[i].slice * m_.bytes;
        auto* to = reinterpret_cast<uint32_t*>(slice + place[i].word * kData);
        const int left = m_.bytes / 4 - 3 * place[i].word;
        to[0] = uint32_t(word[i].low);
        if (left > 1) to[1] = uint32_t(word[i].low >> 32);
        if (left > 2) to[2] = uint32_t(word[i].high);
      }
      from += kFlight * kThreads;
    }
  }

 private:
  // A thread's place among the words of all slices; the next is found without a division.
  struct Place {
    int slice, word;
  };
  SK_DEVICE Place next(Place at) const {
    at.slice += step_.slice, at.word += step_.word;
    if (at.word >= a_.items) ++at.slice, at.word -= a_.items;
    return at;
  }
  SK_DEVICE bool wanted(Place at) const { return at.slice < a_.blocks && at.slice != m_.own; }
  // Memory is zero at launch: no round has flag 0.
  SK_DEVICE static uint32_t flag(int round) { return uint32_t(round) + 1; }

  Place first_, step_;
};

// Plain stores, a counter of the blocks that have made theirs, and plain loads.
class Counter : public Memory {
 public:
  static int items(int bytes) { return bytes / kChunk; }
  using Memory::Memory;

  template <typename Data>
  SK_DEVICE void publish(const Data& data, int round) const {
    for (int i = m_.thread; i < a_.slices << a_.shift; i += kThreads) {
      const int slice = i >> a_.shift, chunk = i & (m_.chunks - 1);
      if (a_.slices > 1 && slice == m_.own) continue;
      sent_to<uint4>(slice, round)[m_.own << a_.shift | chunk] = data.chunk(slice, chunk);
    }
    __syncthreads();
    if (m_.thread == 0) sk::add_release(a_.counters + m_.group, 1);
  }

  SK_DEVICE void collect(int round) const {
    if (m_.thread == 0) sk::wait_at_least(a_.counters + m_.group, a_.blocks * (round + 1));
    __syncthreads();
    const uint4* from = sent_to<uint4>(m_.own, round);
    for (int first = m_.thread; first < a_.blocks << a_.shift; first += kFlight * kThreads) {
      uint4 chunk[kFlight];
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        const int at = first + i * kThreads;
        if (wanted(at)) chunk[i] = sk::load_l2(from + at);
      }
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        const int at = first + i * kThreads;
        if (wanted(at)) reinterpret_cast<uint4*>(received_)[at] = chunk[i];
      }
    }
  }

 private:
  static constexpr int kFlight = 8;
  SK_DEVICE bool wanted(int chunk) const {
    return chunk < a_.blocks << a_.shift && chunk >> a_.shift != m_.own;
  }
};

}  // namespace micro
