// Loops that wait for another block, and the build in which they give up. Included by device.h.
//
// With -DSK_SPIN_LIMIT=n a loop that has found nothing n times leaves a record in host memory,
// where it outlives the CUDA context, waits a little for other blocks to do the same, and traps: a
// mistake in an exchange becomes an error that says who waited for what. Barriers of the hardware
// cannot give up, but end with the kernel.
#pragma once

namespace sk {

enum class Wait : int32_t { kNothing, kWords, kBarrier, kCounter };

// Where a loop gave up; -1 where a number is not known.
struct SpinRecord {
  Wait wait = Wait::kNothing;
  int32_t block = 0, thread = 0, round = 0, peer = 0, polls = 0;
};
// A block writes the record of its number, modulo this.
constexpr int kSpinRecords = 256;

#ifdef SK_SPIN_LIMIT
#ifdef SK_EMULATE
#define SK_HERE place
inline SpinRecord spin_records[kSpinRecords];
inline SpinRecord* host_spin_records() { return spin_records; }
#else
#define SK_HERE
// One in every source file; device_launch.h sets it.
static __device__ SpinRecord* spin_records = nullptr;
#endif
#endif

// Counts the polls of one wait. Without a limit it is nothing.
class Polls {
 public:
#ifdef SK_SPIN_LIMIT
  SK_DEVICE Polls(Wait wait, int round, int peer) : wait_(wait), round_(round), peer_(peer) {}
#else
  SK_DEVICE Polls(Wait, int, int) {}
#endif

  // A poll has found nothing.
  SK_DEVICE void missed(SK_PLACE) {
#ifdef SK_SPIN_LIMIT
    if (++count_ == SK_SPIN_LIMIT) record();
    if (count_ > SK_SPIN_LIMIT + SK_SPIN_LIMIT / 4) give_up(SK_HERE);
#endif
#ifdef SK_EMULATE
    emu::spin(place, kLimited);
#endif
  }

#ifdef SK_SPIN_LIMIT
 private:
  static constexpr bool kLimited = true;

  SK_DEVICE void record() const {
    if (spin_records == nullptr) return;
    const int block = blockIdx.x, thread = threadIdx.x;
    spin_records[block % kSpinRecords] = {wait_, block, thread, round_, peer_, SK_SPIN_LIMIT};
#ifndef SK_EMULATE
    __threadfence_system();
#endif
  }

#ifdef SK_EMULATE
  void give_up(emu::Place place) const {
    const char* names[] = {"nothing", "words", "an mbarrier", "a counter"};
    emu::fail(place, std::string("gave up waiting for ") + names[int(wait_)] + ", round " +
                         std::to_string(round_) + ", peer " + std::to_string(peer_));
  }
#else
  SK_DEVICE static void give_up() { __trap(); }
#endif

  Wait wait_;
  int round_, peer_;
  int64_t count_ = 0;
#else
 private:
  static constexpr bool kLimited = false;
#endif
};

}  // namespace sk
