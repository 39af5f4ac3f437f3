// How the blocks of a group pass on what they computed: every block publishes the values of its
// units, a run of 16-byte chunks, and collects those of all others into its shared memory.
//
// In a cluster values are stored straight into the peers' shared memory, into the half of the
// double buffer that they do not read, and counted there by a transaction barrier. Through L2 they
// are cut into words of 12 bytes and a flag that names the round: a reader that sees the flag has
// the data, so no fence and no second access is needed, and nothing is ever cleared.
//
// A backward may take the values in pieces (plan.h): then nothing is collected before the product
// that reads it.
//
// Why a buffer may be written again: a block publishes round r after it has collected round r - 1,
// which its peers published after they had read all of round r - 2, the last user of the buffer.
#pragma once
#include "cuda/persistent/product.h"

namespace seqkernels {

class Exchanger {
 public:
  // All threads, before the first round.
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    plan_ = &a.plan;
    shared_ = shared;
    barriers_ = reinterpret_cast<uint64_t*>(shared + a.plan.barrier_offset);
    words_ = static_cast<sk::Word128*>(a.exchange);
    if (a.plan.exchange == Exchange::kCluster) {
      if (b.thread == 0) {
        sk::mbarrier_init(&barriers_[0], 1);
        sk::mbarrier_init(&barriers_[1], 1);
        sk::mbarrier_init_fence();
      }
      sk::cluster_sync();
    } else {
      __syncthreads();
    }
  }
  // No block may leave while a peer's stores to it are on their way.
  SK_DEVICE void end() const {
    if (plan_->exchange == Exchange::kCluster) sk::cluster_sync();
  }

  // Shared memory that the product of round `round` reads.
  SK_DEVICE char* input(int round) const {
    const bool other = plan_->exchange == Exchange::kCluster && round % 2 == 1;
    return shared_ + (other ? plan_->input_bytes : 0);
  }

  // Where the values that round `round` publishes are staged; `bytes` is their size.
  SK_DEVICE char* outgoing(const Block& b, int round, int bytes) const {
    return plan_->pieces > 1 ? shared_ + plan_->own_offset : input(round + 1) + b.own * bytes;
  }

  // The own values are staged; a block barrier precedes.
  SK_DEVICE void publish(const Block& b, int round, int bytes) const {
    const char* values = outgoing(b, round, bytes);
    if (plan_->exchange == Exchange::kCluster) {
      const uint32_t to = sk::shared_address(values);
      const uint32_t barrier = sk::shared_address(&barriers_[(round + 1) % 2]);
      for (int peer = b.warp; peer < plan_->blocks; peer += b.threads / 32) {
        if (peer == b.own) continue;
        const uint32_t peer_to = sk::cluster_address(to, peer);
        const uint32_t peer_barrier = sk::cluster_address(barrier, peer);
        for (int i = b.lane * kChunkBytes; i < bytes; i += 32 * kChunkBytes) {
          sk::store_async(peer_to + i, *reinterpret_cast<const uint4*>(values + i), peer_barrier);
        }
      }
    } else if (plan_->exchange == Exchange::kL2) {
      const auto* data = reinterpret_cast<const uint32_t*>(values);
      const int count = bytes / 4, words = ceil_div_device(bytes, kWordData);
      sk::Word128* to = at(b, round, b.own);
      for (int w = b.thread; w < words; w += b.threads) {
        const uint32_t d0 = data[3 * w], d1 = 3 * w + 1 < count ? data[3 * w + 1] : 0,
                       d2 = 3 * w + 2 < count ? data[3 * w + 2] : 0;
        sk::store_relaxed(to + w, {uint64_t(d1) << 32 | d0, uint64_t(flag(round)) << 32 | d2});
      }
    }
  }

  // Waits for the values of all others; a block barrier must follow.
  SK_DEVICE void collect(const Block& b, int round, int bytes) const {
    if (plan_->exchange == Exchange::kCluster) {
      uint64_t* barrier = &barriers_[(round + 1) % 2];
      if (b.thread == 0) sk::mbarrier_arrive_expect_tx(barrier, (plan_->blocks - 1) * bytes);
      sk::mbarrier_wait_cluster(barrier, round / 2 % 2, round);
    } else if (plan_->exchange == Exchange::kL2) {
      collect_words(b, round, bytes, 0, plan_->blocks, input(round + 1));
    }
  }

  // The same for the blocks of one piece, the own one included; a block barrier must follow. The
  // buffer is that of the piece before the last: whoever passed the barrier of the last one has
  // read it.
  SK_DEVICE const char* collect_piece(const Block& b, int round, int bytes, int piece) const {
    const int first = piece * plan_->peers, left = plan_->blocks - first;
    const int count = left < plan_->peers ? left : plan_->peers;
    char* buffer = shared_ + piece % 2 * plan_->piece_bytes;
    if (b.own >= first && b.own < first + count) {
      const char* own = shared_ + plan_->own_offset;
      char* to = buffer + (b.own - first) * bytes;
      for (int i = b.thread * 16; i < bytes; i += b.threads * 16) {
        *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(own + i);
      }
    }
    collect_words(b, round, bytes, first, count, buffer);
    return buffer;
  }

 private:
  static constexpr int kFlight = 4;

  // The values of `blocks` blocks from `first_peer` on, but for the own one.
  SK_DEVICE void collect_words(const Block& b, int round, int bytes, int first_peer, int blocks,
                               char* buffer) const {
    const int words = ceil_div_device(bytes, kWordData), per_block = ceil_div_device(words, 32);
    const int warps = b.threads / 32, total = blocks * per_block;
    for (int first = b.warp; first < total; first += kFlight * warps) {
      // All loads of a batch are on their way before the first is looked at.
      sk::Word128 word[kFlight];
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        const int item = first + i * warps, peer = first_peer + item / per_block;
        const int w = item % per_block * 32 + b.lane;
        if (item < total && peer != b.own && w < words) {
          word[i] = sk::load_relaxed(at(b, round, peer) + w);
        }
      }
#pragma unroll
      for (int i = 0; i < kFlight; ++i) {
        const int item = first + i * warps, place = item / per_block, peer = first_peer + place;
        const int w = item % per_block * 32 + b.lane;
        if (item >= total || peer == b.own || w >= words) continue;
        sk::Polls polls(sk::Wait::kWords, round, peer);
        while (uint32_t(word[i].high >> 32) != flag(round)) {
          polls.missed();
          word[i] = sk::load_relaxed(at(b, round, peer) + w);
        }
        auto* to = reinterpret_cast<uint32_t*>(buffer + place * bytes) + 3 * w;
        const int left = bytes / 4 - 3 * w;
        to[0] = uint32_t(word[i].low);
        if (left > 1) to[1] = uint32_t(word[i].low >> 32);
        if (left > 2) to[2] = uint32_t(word[i].high);
      }
    }
  }

  SK_DEVICE static int ceil_div_device(int a, int b) { return (a + b - 1) / b; }
  // Memory is zero at launch: no round has flag 0.
  SK_DEVICE static uint32_t flag(int round) { return uint32_t(round) + 1; }
  SK_DEVICE sk::Word128* at(const Block& b, int round, int peer) const {
    const int64_t groups = plan_->slices * plan_->parts;
    return words_ + ((round % 2 * groups + b.group) * plan_->blocks + peer) * plan_->words;
  }

  const Plan* plan_;
  char* shared_;
  uint64_t* barriers_;
  sk::Word128* words_;
};

}  // namespace seqkernels
