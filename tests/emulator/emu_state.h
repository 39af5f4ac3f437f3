// Shared between the parts of the emulator's core; kernels do not see it.
#pragma once
#include <random>
#include <string>

#include "emu_core.h"
#include "emu_fiber.h"
#include "emu_run.h"
#include "guarded_memory.h"

namespace emu {

enum Schedule {
  kRoundRobin,  // every warp in turn, until its threads wait for more than each other
  kShuffled,    // a new random order every round, random pauses around exchanges
  kDepthFirst   // the last block as far as it can go, then the one before; deliveries come last
};

extern Schedule schedule;
extern std::mt19937 rng;
extern Context scheduler_context;
// Counts what other threads can see.
extern uint64_t epoch;
extern uint64_t switches;
extern EmuRecorder recorder;  // told of every launch, or null
// Launches that the device refuses: with `code`, where it is not 0; of those with a cluster, the
// cooperative attribute, or both, where these are asked for.
struct Refused {
  int code = 0;
  bool clusters = false, cooperative = false;
  bool trials_pass = false;  // a trial does not show it
  int resident = 0;          // clusters that are resident at most; 0: as many as fit
};
extern Refused refused;

std::string describe(const Fiber& fiber);  // "block 3 thread 17"
std::string describe(Place place);         // "kernel.cu:40"
void to_scheduler();                       // from a fiber
void leave_barriers(Fiber& fiber);         // an exited thread no longer counts
bool deliver(Delivery& delivery);          // false: ended with an error

}  // namespace emu
