// Launches, the three schedules, and the reports of deadlock and livelock.
#include <sys/mman.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <map>

#include "emu_state.h"

namespace emu {

Schedule schedule = kRoundRobin;
std::mt19937 rng;
Context scheduler_context;
std::string error;
uint64_t epoch = 0;
uint64_t switches = 0;
EmuRecorder recorder = nullptr;
Refused refused;

namespace {

// The device that launches are checked against: an H100.
constexpr int kProcessors = 132;
constexpr size_t kSharedBytes = 227 << 10, kSharedPerProcessor = 228 << 10;
constexpr unsigned kMaxCluster = 16;

// A launch is stuck when nothing has changed for this many rounds while every thread waits or
// spins.
constexpr uint64_t kIdleRounds = 128;
constexpr unsigned kIdleSpins = 32;

constexpr size_t kPage = 4096;

void fiber_main() {
  entered(scheduler_context);
  try {
    grid->call.invoke(grid->call.kernel, grid->call.arguments);
  } catch (std::exception& e) {
    fail({}, e.what());
  }
  Fiber& fiber = *current;
  if (!fiber.copies.empty()) fail(fiber.copies[0].place, "a thread exits with cp.async on its way");
  fiber.done = true;
  fiber.what = "exit";
  leave_barriers(fiber);
  --fiber.block->live;
  ++epoch;
  for (;;) to_scheduler();
}

bool waiting(const Fiber& fiber) {
  const Wait& wait = fiber.wait;
  if (wait.word) return (*wait.word & wait.mask) == wait.value;
  if (wait.counter) return int32_t(*wait.counter - wait.target) < 0;
  return false;
}

bool spinning(const Fiber& fiber) { return fiber.spin_epoch == epoch && fiber.spins >= kIdleSpins; }

void resume(Fiber& fiber) {
  fiber.wait = {};
  current = &fiber;
  ++switches;
  switch_context(scheduler_context, *fiber.context);
  current = nullptr;
}

// Groups the live threads by what they wait at, and names the first of each group.
std::string where_everyone_is(const Grid& g) {
  std::map<std::string, std::pair<int, const Fiber*>> groups;
  for (auto& fiber : g.fibers) {
    if (fiber->done) continue;
    auto& group = groups[std::string(fiber->what) + " at " + describe(fiber->place)];
    if (group.first++ == 0) group.second = fiber.get();
  }
  std::string text;
  for (auto& [place, group] : groups) {
    text += (text.empty() ? " " : "; ") + std::to_string(group.first) + " threads in " + place +
            ", the first " + describe(*group.second);
  }
  if (!g.deliveries.empty()) text += "; asynchronous stores are on their way";
  return text;
}

// Delivers some of what was on its way when the round began; all of it if nothing else can happen.
void deliver_some(Grid& g, size_t count, bool all) {
  std::vector<Delivery> kept;
  std::vector<Delivery> now;
  for (size_t i = 0; i < g.deliveries.size(); ++i) {
    const bool due =
        i < count && (all || schedule == kRoundRobin || (schedule == kShuffled && rng() % 3 == 0));
    (due ? now : kept).push_back(std::move(g.deliveries[i]));
  }
  g.deliveries = std::move(kept);
  if (schedule == kDepthFirst) std::reverse(now.begin(), now.end());
  if (schedule == kShuffled) std::shuffle(now.begin(), now.end(), rng);
  for (Delivery& delivery : now) {
    if (!deliver(delivery)) return;
  }
}

// Lets a thread go on to what it next waits for, and sets `ran`, unless it waits still. Returns
// whether it did more than spin.
bool step(Fiber& fiber, bool& ran) {
  if (fiber.done || waiting(fiber) || !error.empty()) return false;
  ran = true;
  const uint64_t spins = fiber.spin_epoch == epoch ? fiber.spins : 0;
  resume(fiber);
  return !(fiber.spin_epoch == epoch && fiber.spins > spins);
}

// Lets a warp's threads go on until they wait for more than each other. Their stacks stay in the
// cache meanwhile: one turn of every thread of the grid for each meeting takes twice as long.
bool run_warp(Warp& warp, bool backwards, bool& ran) {
  bool moved = false;
  const size_t count = warp.fibers.size();
  for (bool more = true; more && error.empty();) {
    for (size_t i = 0; i < count; ++i) {
      moved |= step(*warp.fibers[backwards ? count - 1 - i : i], ran);
    }
    more = std::any_of(warp.fibers.begin(), warp.fibers.end(), [](Fiber* fiber) {
      return !fiber->done && fiber->wait.meeting && !waiting(*fiber);
    });
  }
  return moved;
}

// One round; whether any thread ran.
bool run_round(Grid& g, std::vector<Fiber*>& order) {
  bool ran = false;
  if (schedule == kShuffled) {
    std::shuffle(order.begin(), order.end(), rng);
    for (Fiber* fiber : order) step(*fiber, ran);
  } else if (schedule == kDepthFirst) {
    for (size_t b = g.blocks.size(); b-- > 0;) {
      auto& warps = g.blocks[b]->warps;
      for (bool more = true; more;) {
        more = false;
        for (size_t i = warps.size(); i-- > 0;) more |= run_warp(warps[i], true, ran);
      }
    }
  } else {
    for (auto& block : g.blocks) {
      for (Warp& warp : block->warps) run_warp(warp, false, ran);
    }
  }
  return ran;
}

void run_all(Grid& g) {
  std::vector<Fiber*> order;
  for (auto& fiber : g.fibers) order.push_back(fiber.get());
  uint64_t last_epoch = epoch, idle = 0;
  while (error.empty()) {
    const size_t on_their_way = g.deliveries.size();
    const bool ran = run_round(g, order);
    if (!error.empty()) return;
    order.erase(std::remove_if(order.begin(), order.end(), [](Fiber* f) { return f->done; }),
                order.end());
    if (order.empty()) {
      deliver_some(g, g.deliveries.size(), true);
      return;
    }
    idle = epoch == last_epoch ? idle + 1 : 0;
    const bool stuck = !ran || (idle >= kIdleRounds && idle % kIdleRounds == 0 &&
                                std::all_of(order.begin(), order.end(), [](Fiber* fiber) {
                                  // The other lanes of a spinning warp move only as far as its next
                                  // meeting.
                                  if (waiting(*fiber) || spinning(*fiber)) return true;
                                  const auto& warp = fiber->block->warps[fiber->warp].fibers;
                                  return std::any_of(warp.begin(), warp.end(),
                                                     [](Fiber* other) { return spinning(*other); });
                                }));
    const bool ends = std::any_of(order.begin(), order.end(),
                                  [](Fiber* fiber) { return spinning(*fiber) && fiber->limited; });
    if (stuck && g.deliveries.empty() && !ends) {
      error = (ran ? "livelock, all threads spin or wait:" : "deadlock:") + where_everyone_is(g);
      return;
    }
    deliver_some(g, stuck ? g.deliveries.size() : on_their_way, stuck);
    last_epoch = epoch;
  }
}

#if !defined(EMU_ASAN) && !defined(EMU_TSAN)
sigjmp_buf fault_exit;

void on_fault(int, siginfo_t* info, void*) {
  if (!current) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  const char* p = static_cast<const char*>(info->si_addr);
  error = "memory fault";
  for (auto& block : grid->blocks) {
    const ptrdiff_t offset = p - block->shared;
    if (offset >= -ptrdiff_t(kPage) && offset < ptrdiff_t(grid->shared_bytes + kGuard)) {
      error += ", offset " + std::to_string(offset) + " of " + std::to_string(grid->shared_bytes) +
               " bytes of shared memory" + (block->live ? "" : " of a block that has exited");
      break;
    }
  }
  error +=
      "; " + describe(*current) + " after " + current->what + " at " + describe(current->place);
  siglongjmp(fault_exit, 1);
}

struct FaultHandler {
  struct sigaction old_fault, old_bus;
  stack_t old_stack;
  std::vector<char> stack = std::vector<char>(64 << 10);
  FaultHandler() {
    stack_t own = {};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    sigaltstack(&own, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_fault);
    sigaction(SIGBUS, &action, &old_bus);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &old_fault, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);
  }
};
void run_guarded(Grid& g) {
  FaultHandler handler;
  if (sigsetjmp(fault_exit, 1) == 0) run_all(g);
}
#else
void run_guarded(Grid& g) { run_all(g); }
#endif

}  // namespace

int max_resident(dim3 block_dim, size_t shared_bytes, unsigned cluster, int* clusters) {
  const unsigned threads = block_dim.x * block_dim.y * block_dim.z;
  *clusters = 0;
  if (threads == 0 || threads > 1024 || shared_bytes > kSharedBytes || cluster > kMaxCluster) {
    return cudaErrorInvalidConfiguration;
  }
  const size_t by_shared = kSharedPerProcessor / (shared_bytes + 1024), by_threads = 2048 / threads;
  *clusters = int(std::min(std::min(by_shared, by_threads), size_t(32)) * kProcessors / cluster);
  if (refused.resident > 0) *clusters = std::min(*clusters, refused.resident);
  return cudaSuccess;
}

int launch(const Call& call, dim3 grid_dim, dim3 block_dim, size_t shared_bytes, unsigned cluster,
           bool cooperative, bool trial) {
  // Like a sticky CUDA error, a report ends every later launch of the same call.
  if (!error.empty()) return cudaErrorLaunchFailure;
  if (refused.code && (cluster > 1 || !refused.clusters) && (cooperative || !refused.cooperative) &&
      (!trial || !refused.trials_pass)) {
    return refused.code;
  }
  if (recorder && !trial) {
    const uint64_t numbers[] = {grid_dim.x,  grid_dim.y,   grid_dim.z, block_dim.x, block_dim.y,
                                block_dim.z, shared_bytes, cluster,    cooperative};
    recorder(call.kernel, reinterpret_cast<void*>(call.invoke), call.arguments, call.bytes,
             numbers);
  }
  const unsigned count = grid_dim.x * grid_dim.y * grid_dim.z;
  const unsigned threads = block_dim.x * block_dim.y * block_dim.z;
  int resident = 0;
  if (int code = max_resident(block_dim, shared_bytes, cluster, &resident)) return code;
  if (count == 0 || grid_dim.x % cluster) return cudaErrorInvalidConfiguration;
  if (cooperative && count > resident * cluster) return cudaErrorCooperativeLaunchTooLarge;
  if (trial) return cudaSuccess;

  const Unwatched unwatched;
  Grid g;
  g.grid_dim = grid_dim;
  g.block_dim = block_dim;
  g.cluster = cluster;
  g.shared_bytes = shared_bytes;
  g.call = call;
  g.cluster_barriers.resize(count / cluster);
  for (Barrier& barrier : g.cluster_barriers) barrier.expected = int(cluster * threads);
  const size_t stacks_bytes = stack_bytes() * count * threads;
  char* stacks = static_cast<char*>(mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  madvise(stacks, stacks_bytes, MADV_NOHUGEPAGE);
  std::vector<Context> contexts(size_t(count) * threads);
  std::vector<Guarded> shared;
  g.block_pointers.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    auto block = std::make_unique<Block>();
    block->block_idx = {i % grid_dim.x, i / grid_dim.x % grid_dim.y, i / (grid_dim.x * grid_dim.y)};
    block->linear = i;
    block->rank = i % cluster;
    block->live = threads;
    block->barrier.expected = int(threads);
    block->warps.resize((threads + 31) / 32);
    block->cluster = &g.block_pointers[i - block->rank];
    block->cluster_barrier = &g.cluster_barriers[i / cluster];
    shared.push_back(guarded(shared_bytes, 128));
    block->shared = shared.back().data;
    memset(block->shared, 0xff, shared_bytes);  // NaN in every floating type
    for (unsigned t = 0; t < threads; ++t) {
      auto fiber = std::make_unique<Fiber>();
      const size_t index = g.fibers.size();
      fiber->context = &contexts[index];
#ifdef EMU_TSAN
      const std::string name = "block " + std::to_string(i) + " thread " + std::to_string(t);
#else
      const std::string name;
#endif
      create(contexts[index], stacks + stack_bytes() * index, fiber_main, name.c_str());
      fiber->thread_idx = {t % block_dim.x, t / block_dim.x % block_dim.y,
                           t / (block_dim.x * block_dim.y)};
      fiber->linear = t;
      fiber->lane = int(t % 32);
      fiber->warp = int(t / 32);
      fiber->block = block.get();
      block->warps[fiber->warp].live |= 1u << fiber->lane;
      block->warps[fiber->warp].fibers.push_back(fiber.get());
      g.fibers.push_back(std::move(fiber));
    }
    g.block_pointers[i] = block.get();
    g.blocks.push_back(std::move(block));
  }
  grid = &g;
  adopt(scheduler_context);
  run_guarded(g);
  EMU_ACQUIRE(&g.exited);
  for (auto& fiber : g.fibers) destroy(*fiber->context, fiber->done);
  for (size_t i = 0; i < shared.size(); ++i) {
    if (error.empty() && overrun(shared[i])) {
      error = "block " + std::to_string(i) + " wrote beyond its shared memory";
    }
    release(shared[i]);
  }
  munmap(stacks, stacks_bytes);
  grid = nullptr;
  current = nullptr;
  return error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emu
