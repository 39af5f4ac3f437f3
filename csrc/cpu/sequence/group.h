// Phases run by a group, with a wait between two phases and no assumption about threads.
//
// A phase has `shares` pieces of work. A member has home shares, which it takes in every phase so
// that their weights stay in its cache; a share that nobody has taken for a while is taken by
// whoever waits. So one member alone finishes everything, and a member that comes late, or never,
// delays nobody: the thread pool may run members one after another, in one call, or on fewer
// threads. Who computes a share does not change its result.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace seqkernels {
namespace cpu {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Group {
 public:
  explicit Group(int64_t shares) : shares_(shares), state_(new State[shares]) {}

  // Take part with the home shares [home0, home1) until every phase is done.
  template <typename Work>
  void work(int64_t phases, int64_t home0, int64_t home1, const Work& run) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int64_t share = home0; share < home1; ++share) take(phase, share, run);
      for (int64_t share = 0; share < shares_; ++share)
        if (share < home0 || share >= home1) wait(phase, share, run);
      // Home shares that another member took.
      for (int64_t share = home0; share < home1; ++share) wait(phase, share, run);
    }
  }

 private:
  // Long enough for a member that is running, short against one that is not.
  static constexpr int kSpinsBeforeTaking = 1000, kSpinsBeforeYield = 1000;

  // Phases of a share that have been taken and done; a cache line each, against false sharing.
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  struct State {
    Counter taken, done;
  };

  template <typename Work>
  void take(int64_t phase, int64_t share, const Work& run) {
    int64_t expected = phase;
    if (!state_[share].taken.value.compare_exchange_strong(expected, phase + 1)) return;
    run(phase, share);
    state_[share].done.value.store(phase + 1, std::memory_order_release);
  }

  template <typename Work>
  void wait(int64_t phase, int64_t share, const Work& run) {
    State& s = state_[share];
    for (int spins = 1; s.done.value.load(std::memory_order_acquire) <= phase; ++spins) {
      if (spins % kSpinsBeforeTaking == 0) take(phase, share, run);
      if (spins % kSpinsBeforeYield == 0)
        sched_yield();
      else
        pause_briefly();
    }
  }

  int64_t shares_;
  std::unique_ptr<State[]> state_;
};

}  // namespace cpu
}  // namespace seqkernels
