// Phases of one decode shared by the threads of a parallel region, without assuming that they run
// at the same time.
//
// The work of a phase is cut into shares, and whoever is there claims them: first the own ones, so
// that a thread finds its share of the weights in its cache, then what others have not begun. A
// thread waits only for shares that somebody has claimed and is therefore computing. So a region
// that runs its threads one after the other is as right as one that runs them together: the first
// thread does everything, the others find nothing left.
//
// Unlike `Group` (group.h), the number of phases is not known beforehand, the end of a phase may
// carry work of its own, and a waiting thread gives way early: a token takes microseconds, and a
// wait for a thread without a processor would cost hundreds of them.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/sequence/group.h"

namespace seqkernels {
namespace cpu {

class DecodeGroup {
 public:
  explicit DecodeGroup(int64_t shares) : shares_(shares), claims_(new Claim[shares]) {}

  // Take part, preferring the home share: run(share) for the shares it claims; the thread that
  // completes a phase alone calls next(), which prepares the next phase or returns false to end.
  template <typename Run, typename Next>
  void work(int64_t home, const Run& run, const Next& next) {
    for (;;) {
      const int64_t phase = phase_.load(std::memory_order_acquire);
      if (phase == kEnd) return;
      for (int64_t i = 0; i < shares_; ++i) {
        const int64_t share = (home + i) % shares_;
        std::atomic<int64_t>& claim = claims_[share].phase;
        int64_t unclaimed = phase;
        if (i > 0) pause_for(claim, phase);
        if (!claim.compare_exchange_strong(unclaimed, phase + 1, std::memory_order_acq_rel))
          continue;
        run(share);
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == (phase + 1) * shares_)
          phase_.store(next() ? phase + 1 : kEnd, std::memory_order_release);
      }
      for (int turns = 0; phase_.load(std::memory_order_acquire) == phase; ++turns)
        turns < kSpinsBeforeYield ? pause_briefly() : void(sched_yield());
    }
  }

 private:
  static constexpr int64_t kEnd = -1;
  static constexpr int kSpinsBeforeTaking = 20, kSpinsBeforeYield = 500;
  struct alignas(64) Claim {
    std::atomic<int64_t> phase{0};
  };

  // A moment for the share's own thread to claim it, which has its weights at hand.
  static void pause_for(const std::atomic<int64_t>& claim, int64_t phase) {
    for (int turns = 0; turns < kSpinsBeforeTaking; ++turns) {
      if (claim.load(std::memory_order_relaxed) != phase) return;
      pause_briefly();
    }
  }

  const int64_t shares_;
  const std::unique_ptr<Claim[]> claims_;
  alignas(64) std::atomic<int64_t> phase_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace cpu
}  // namespace seqkernels
