// Phases run by a team, with a wait between two phases and no assumption about threads.
//
// A phase has `chunks` pieces of work. A member has home chunks, which it takes in every phase so
// that their weights stay in its cache; a chunk that nobody has taken for a while is taken by
// whoever waits. So one member alone finishes everything, and a member that comes late, or never,
// delays nobody: the thread pool may run members one after another, in one call, or on fewer
// threads. Who computes a chunk does not change its result.
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

class Team {
 public:
  explicit Team(int64_t chunks) : chunks_(chunks), state_(new State[chunks]) {}

  // Take part with the home chunks [home0, home1) until every phase is done.
  template <typename Work>
  void work(int64_t phases, int64_t home0, int64_t home1, const Work& run) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int64_t chunk = home0; chunk < home1; ++chunk) take(phase, chunk, run);
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        if (chunk < home0 || chunk >= home1) wait(phase, chunk, run);
      // Home chunks that another member took.
      for (int64_t chunk = home0; chunk < home1; ++chunk) wait(phase, chunk, run);
    }
  }

 private:
  // Long enough for a member that is running, short against one that is not.
  static constexpr int kSpinsBeforeTaking = 1000, kSpinsBeforeYield = 1000;

  // Phases of a chunk that have been taken and done; a cache line each, against false sharing.
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  struct State {
    Counter taken, done;
  };

  template <typename Work>
  void take(int64_t phase, int64_t chunk, const Work& run) {
    int64_t expected = phase;
    if (!state_[chunk].taken.value.compare_exchange_strong(expected, phase + 1)) return;
    run(phase, chunk);
    state_[chunk].done.value.store(phase + 1, std::memory_order_release);
  }

  template <typename Work>
  void wait(int64_t phase, int64_t chunk, const Work& run) {
    State& s = state_[chunk];
    for (int spins = 1; s.done.value.load(std::memory_order_acquire) <= phase; ++spins) {
      if (spins % kSpinsBeforeTaking == 0) take(phase, chunk, run);
      if (spins % kSpinsBeforeYield == 0)
        sched_yield();
      else
        pause_briefly();
    }
  }

  int64_t chunks_;
  std::unique_ptr<State[]> state_;
};

}  // namespace cpu
}  // namespace seqkernels
