// The emulator's machine: grids, blocks, warps and threads, and what they wait on. One fiber per
// CUDA thread, all blocks alive at once, one operating system thread. emu_core.cpp implements it
// and is never instrumented by a sanitizer, so that races are looked for in kernel code alone;
// whatever touches a kernel's memory stands in emu_device.h, which is.
#pragma once
#include <cuda_runtime_api.h>  // dim3, uint4, cudaError_t: host headers only

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#ifdef EMU_TSAN
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#define EMU_ACQUIRE(p) __tsan_acquire(p)
#define EMU_RELEASE(p) __tsan_release(p)
#else
#define EMU_ACQUIRE(p) ((void)0)
#define EMU_RELEASE(p) ((void)0)
#endif

namespace emu {

struct Place {
  const char* file;
  int line;
};

struct Barrier {
  int expected = 0;
  int arrived = 0;
  uint64_t generation = 0;
  Place place = {};       // of the first to arrive
  unsigned first = 0;     // its thread
  char happened[2] = {};  // names for the race checker, by the generation's parity
};

// What a fiber waits for: while (*word & mask) == value, or while *counter has not reached
// `target`.
struct Wait {
  const uint64_t* word = nullptr;
  uint64_t mask = 0, value = 0;
  const uint32_t* counter = nullptr;
  uint32_t target = 0;
  bool meeting = false;  // for lanes of the own warp alone
};

// One cp.async. Its bytes were read at the issue, and land at the wait.
struct Copy {
  char* to;
  const char* from;
  int bytes;
  bool valid;
  char data[16];
  Place place;
};

struct Context;  // machine state and stack of a fiber, see emu_fiber.h
struct Block;

struct Fiber {
  Context* context = nullptr;
  uint3 thread_idx;
  unsigned linear = 0;
  int lane = 0, warp = 0;
  Block* block = nullptr;
  bool done = false;
  Wait wait;
  const char* what = "start";  // last synchronisation point, for reports
  Place place = {};
  uint64_t spin_epoch = 0;  // spins are counted since the machine last changed
  unsigned spins = 0, polls = 0;
  bool limited = false;  // the last spin was
  bool cluster_arrived = false;
  uint64_t cluster_generation = 0;
  std::vector<Copy> copies;     // issued and not waited for, oldest first
  std::vector<size_t> commits;  // a group ends before copies[commits[i]]
};

// Lanes of a warp that execute one `.sync` instruction together.
struct Meeting {
  unsigned mask = 0, arrived = 0, reading = 0;  // free while mask is 0
  uint64_t complete = 0;
  const char* what = nullptr;
  Place place = {};
  int first = 0;
  alignas(16) char slot[32][64];
};

struct Warp {
  unsigned live = 0;
  std::vector<Fiber*> fibers;
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct Block {
  uint3 block_idx;
  unsigned linear = 0, rank = 0, live = 0;
  Barrier barrier;
  Barrier named[16];
  std::vector<Warp> warps;
  char* shared = nullptr;
  Block** cluster = nullptr;  // the blocks of the own cluster
  Barrier* cluster_barrier = nullptr;
};

// A store_async or bulk copy on its way.
struct Delivery {
  char* to;
  const char* from;  // null for store_async
  std::vector<char> data;
  uint32_t barrier;
  Block* sender;
  Place place;
  bool remote;
};

// A kernel and its arguments.
struct Call {
  void* kernel;
  void (*invoke)(void* kernel, const void* arguments);
  const void* arguments;
  size_t bytes;
};

struct Grid {
  dim3 grid_dim, block_dim;
  unsigned cluster = 1;
  size_t shared_bytes = 0;
  Call call;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Block*> block_pointers;
  std::vector<Barrier> cluster_barriers;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Delivery> deliveries;
  char exited;  // a name for the race checker: the host sees what all threads did
};

// While one exists, the race checker looks away: calls of memcpy and the allocator are watched even
// where they come from code that is not instrumented.
struct Unwatched {
#ifdef EMU_TSAN
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
#else
  Unwatched() {}
#endif
};

extern Fiber* current;
extern Grid* grid;

// Ends the launch with a report that names the block and thread of `current`.
[[noreturn]] void fail(Place place, const std::string& text);
// The kernel did something that others can see: used to tell a livelock from slow progress.
void changed();
// Leaves the processor until `wait` is over.
void suspend(const Wait& wait, const char* what, Place place);
// The body of a spin loop: lets others run. Never counts as progress. One that is limited ends by
// itself and is no livelock.
void spin(Place place, bool limited = false);
// Under the shuffled schedule sometimes lets others run, so that orders of exchange vary.
void perhaps_preempt(const char* what, Place place);
// Too many loads of a flag without spin_yield end the launch instead of hanging it.
inline void count_poll(Place place) {
  if (++current->polls > 1000000) fail(place, "a loop polls memory and never calls spin_yield");
}

// Rises with every call.
int64_t clock64();

void arrive(Barrier& barrier);
void block_barrier(const char* what, Place place);
void named_barrier(int id, int threads, bool wait, Place place);
void cluster_arrive(Place place);
void cluster_wait(Place place);

// Joins the meeting of `mask` with this lane's value, at most 64 bytes; returns when all lanes of
// the mask that have not exited are there: these are the meeting's mask then. The last to come
// calls `finish`, which may replace the values by results.
Meeting& meet(unsigned mask, const char* what, Place place, const void* value, size_t bytes,
              bool needs_all = false, void (*finish)(Meeting&) = nullptr);
// Copies lane `lane`'s value or result out; every lane calls leave() once, afterwards.
void read_slot(const Meeting& meeting, int lane, void* value, size_t bytes);
void leave(Meeting& meeting);

// Matrix products over a meeting's slots, d += a b.
struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};
void finish_mma_half(Meeting& meeting);
void finish_mma_bfloat16(Meeting& meeting);
void finish_mma_tf32(Meeting& meeting);
float half_to_float(uint16_t bits);

// Puts a store (`from` null, the bytes at `value`) or a bulk copy from `from` on its way.
void deliver_later(char* to, const void* value, const char* from, size_t bytes, uint32_t barrier,
                   Place place);
// Arrivals, and a change of the bytes still expected, on the mbarrier at a cluster address.
void mbarrier_count(uint32_t barrier, unsigned arrivals, int bytes, bool remote, const char* what,
                    Place place);
// Pointer behind a cluster address, checked to lie in a live block's shared memory.
char* shared_pointer(uint32_t address, size_t bytes, const char* what, Place place);

// Calls the kernel behind `kernel` with the std::tuple of its parameters at `arguments`.
template <typename... P>
void invoke(void* kernel, const void* arguments) {
  std::apply(reinterpret_cast<void (*)(P...)>(kernel),
             *static_cast<const std::tuple<P...>*>(arguments));
}
// `trial`: only whether the launch would be refused.
int launch(const Call& call, dim3 grid_dim, dim3 block_dim, size_t shared_bytes, unsigned cluster,
           bool cooperative, bool trial = false);
int max_resident(dim3 block_dim, size_t shared_bytes, unsigned cluster, int* clusters);

// An mbarrier's 64 bits. All ones, the poison, is not a valid state.
constexpr uint64_t kPhase = 1ull << 62, kRemote = 1ull << 61, kInvalid = 1ull << 63;
constexpr int kPendingShift = 41, kExpectedShift = 21;
constexpr uint64_t kCount = (1ull << 20) - 1, kBytes = (1ull << 21) - 1, kNoBytes = 1ull << 20;

}  // namespace emu
