// Barriers, meetings of a warp's lanes, mbarriers and deliveries. See emu_core.h.
#include "emu_core.h"

#include "emu_state.h"

namespace emu {

Fiber* current = nullptr;
Grid* grid = nullptr;

std::string describe(const Fiber& fiber) {
  const uint3 b = fiber.block->block_idx;
  std::string name = "block " + std::to_string(b.x);
  if (grid->grid_dim.y * grid->grid_dim.z > 1) {
    name += "," + std::to_string(b.y) + "," + std::to_string(b.z);
  }
  return name + " thread " + std::to_string(fiber.linear);
}

std::string describe(Place place) {
  if (!place.file) return "an unknown place";
  const char* slash = strrchr(place.file, '/');
  return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

void to_scheduler() { switch_context(*current->context, scheduler_context); }

void fail(Place place, const std::string& text) {
  const Unwatched unwatched;
  if (error.empty()) {
    error = text + "; " + describe(*current);
    error += place.file
                 ? " at " + describe(place)
                 : " after " + std::string(current->what) + " at " + describe(current->place);
  }
  for (;;) to_scheduler();
}

void changed() {
  ++epoch;
  current->polls = 0;
}

void suspend(const Wait& wait, const char* what, Place place) {
  current->wait = wait;
  current->what = what;
  current->place = place;
  to_scheduler();
}

void spin(Place place, bool limited) {
  Fiber& fiber = *current;
  fiber.polls = 0;
  fiber.limited = limited;
  if (fiber.spin_epoch != epoch) fiber.spins = 0;
  fiber.spin_epoch = epoch;
  ++fiber.spins;
  suspend({}, "spin_yield", place);
}

void perhaps_preempt(const char* what, Place place) {
  if (schedule == kShuffled && rng() % 4 == 0) suspend({}, what, place);
}

int64_t clock64() {
  static int64_t clocks = 0;
  return ++clocks;
}

// Barriers.

static void complete(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
  ++epoch;
}

void arrive(Barrier& barrier) {
  if (++barrier.arrived >= barrier.expected) complete(barrier);
}

static void wait_for(Barrier& barrier, uint64_t generation, const char* what, Place place) {
  if (barrier.generation == generation)
    suspend({&barrier.generation, ~0ull, generation}, what, place);
  EMU_ACQUIRE(&barrier.happened[generation & 1]);
}

void block_barrier(const char* what, Place place) {
  Barrier& barrier = current->block->barrier;
  const uint64_t generation = barrier.generation;
  if (barrier.arrived == 0) {
    barrier.place = place;
    barrier.first = current->linear;
  } else if (barrier.place.line != place.line || strcmp(barrier.place.file, place.file) != 0) {
    fail(place, std::string(what) + ": threads of one block meet at different barriers, thread " +
                    std::to_string(barrier.first) + " at " + describe(barrier.place));
  }
  EMU_RELEASE(&barrier.happened[generation & 1]);
  arrive(barrier);
  wait_for(barrier, generation, what, place);
}

void named_barrier(int id, int threads, bool wait, Place place) {
  const char* what = wait ? "named_barrier_sync" : "named_barrier_arrive";
  if (id < 1 || id > 15) fail(place, std::string(what) + ": id " + std::to_string(id));
  if (threads <= 0 || threads % 32) {
    fail(place, std::string(what) + ": " + std::to_string(threads) + " is not a multiple of 32");
  }
  Barrier& barrier = current->block->named[id];
  const uint64_t generation = barrier.generation;
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.place = place;
    barrier.first = current->linear;
  } else if (barrier.expected != threads) {
    fail(place, std::string(what) + ": " + std::to_string(threads) + " threads, but thread " +
                    std::to_string(barrier.first) + " at " + describe(barrier.place) + " said " +
                    std::to_string(barrier.expected));
  }
  EMU_RELEASE(&barrier.happened[generation & 1]);
  arrive(barrier);
  if (wait) wait_for(barrier, generation, what, place);
}

void cluster_arrive(Place place) {
  Barrier& barrier = *current->block->cluster_barrier;
  if (current->cluster_arrived) fail(place, "cluster_arrive twice without cluster_wait");
  current->cluster_arrived = true;
  current->cluster_generation = barrier.generation;
  EMU_RELEASE(&barrier.happened[barrier.generation & 1]);
  arrive(barrier);
}

void cluster_wait(Place place) {
  if (!current->cluster_arrived) fail(place, "cluster_wait without cluster_arrive");
  wait_for(*current->block->cluster_barrier, current->cluster_generation, "cluster_wait", place);
  current->cluster_arrived = false;
}

static void leave(Barrier& barrier) {
  if (--barrier.expected > 0 && barrier.arrived >= barrier.expected) complete(barrier);
}

void leave_barriers(Fiber& fiber) {
  Block& block = *fiber.block;
  EMU_RELEASE(&grid->exited);
  leave(block.barrier);
  if (fiber.cluster_arrived && fiber.cluster_generation == block.cluster_barrier->generation) {
    --block.cluster_barrier->arrived;
  }
  leave(*block.cluster_barrier);
  Warp& warp = block.warps[fiber.warp];
  const unsigned own = 1u << fiber.lane;
  warp.live &= ~own;
  for (auto& meeting : warp.meetings) {
    if (!(meeting->mask & ~meeting->arrived & own)) continue;
    meeting->mask &= ~own;
    if (meeting->arrived == meeting->mask) ++meeting->complete;
  }
}

// Meetings.

Meeting& meet(unsigned mask, const char* what, Place place, const void* value, size_t bytes,
              bool needs_all, void (*finish)(Meeting&)) {
  const Unwatched unwatched;
  Fiber& fiber = *current;
  Warp& warp = fiber.block->warps[fiber.warp];
  const unsigned own = 1u << fiber.lane;
  if (!(mask & own)) fail(place, std::string(what) + ": the calling lane is not in its mask");
  // CUDA lets a mask name lanes that have exited, except where a matrix is spread over all lanes.
  if (needs_all && warp.live != ~0u)
    fail(place, std::string(what) + ": lanes of the warp are gone");
  mask &= warp.live;
  Meeting* meeting = nullptr;
  Meeting* unused = nullptr;
  for (auto& m : warp.meetings) {
    if (m->mask == 0) {
      unused = m.get();
    } else if (m->arrived != m->mask && (m->mask & mask)) {
      if (m->mask != mask || m->what != what || m->place.line != place.line ||
          strcmp(m->place.file, place.file) != 0) {
        char masks[64];
        snprintf(masks, sizeof(masks), "masks %#x and %#x", mask, m->mask);
        fail(place, std::string(what) + ": lanes of one warp meet at different places, lane " +
                        std::to_string(m->first) + " in " + m->what + " at " + describe(m->place) +
                        ", " + masks);
      }
      meeting = m.get();
    }
  }
  if (!meeting) {
    if (!unused) {
      warp.meetings.push_back(std::make_unique<Meeting>());
      unused = warp.meetings.back().get();
    }
    meeting = unused;
    meeting->mask = mask;
    meeting->arrived = 0;
    meeting->reading = 0;
    meeting->what = what;
    meeting->place = place;
    meeting->first = fiber.lane;
  }
  if (bytes) memcpy(meeting->slot[fiber.lane], value, bytes);
  EMU_RELEASE(meeting);
  meeting->arrived |= own;
  if (meeting->arrived == mask) {
    if (finish) finish(*meeting);
    ++meeting->complete;
  } else {
    suspend({&meeting->complete, ~0ull, meeting->complete, nullptr, 0, true}, what, place);
  }
  return *meeting;
}

void read_slot(const Meeting& meeting, int lane, void* value, size_t bytes) {
  const Unwatched unwatched;
  memcpy(value, meeting.slot[lane], bytes);
}

void leave(Meeting& meeting) {
  meeting.reading |= 1u << current->lane;
  if (meeting.reading == meeting.mask) meeting.mask = 0;
}

// Shared memory of the cluster, mbarriers, deliveries.

char* shared_pointer(uint32_t address, size_t bytes, const char* what, Place place) {
  const unsigned rank = address >> 24, offset = address & 0xffffff;
  Block& own = *current->block;
  if (rank >= grid->cluster || offset + bytes > grid->shared_bytes) {
    fail(place, std::string(what) + ": outside shared memory, rank " + std::to_string(rank) +
                    " offset " + std::to_string(offset) + " of " +
                    std::to_string(grid->shared_bytes));
  }
  const size_t alignment = bytes < 16 ? bytes : 16;
  if (offset % alignment) fail(place, std::string(what) + ": shared address not aligned");
  Block& block = *own.cluster[rank];
  if (&block != &own && own.cluster_barrier->generation == 0) {
    fail(place, std::string(what) + ": the other block may not have started, cluster_sync first");
  }
  if (block.live == 0) fail(place, std::string(what) + ": the other block has exited");
  return block.shared + offset;
}

static bool count(uint64_t* word, unsigned arrivals, int bytes, bool remote, std::string* why) {
  uint64_t state = *word;
  if (state & kInvalid) {
    *why = "used before mbarrier_init";
    return false;
  }
  const int64_t pending = int64_t(state >> kPendingShift & kCount) - arrivals;
  const int64_t left = int64_t(state & kBytes) - int64_t(kNoBytes) + bytes;
  const uint64_t expected = state >> kExpectedShift & kCount;
  if (pending < 0) {
    *why = "more arrivals than mbarrier_init announced";
    return false;
  }
  if (left <= -int64_t(kNoBytes) || left >= int64_t(kNoBytes)) {
    *why = "byte count out of range";
    return false;
  }
  state = (state & kPhase) | (state & kRemote) | (remote ? kRemote : 0) |
          uint64_t(pending) << kPendingShift | expected << kExpectedShift |
          uint64_t(left + int64_t(kNoBytes));
  if (pending == 0 && left == 0) {
    state = (state ^ kPhase) & ~(kCount << kPendingShift);
    state |= expected << kPendingShift;
    ++epoch;
  }
  *word = state;
  return true;
}

void mbarrier_count(uint32_t barrier, unsigned arrivals, int bytes, bool remote, const char* what,
                    Place place) {
  std::string why;
  auto* word = reinterpret_cast<uint64_t*>(shared_pointer(barrier, 8, what, place));
  if (!count(word, arrivals, bytes, remote, &why)) fail(place, std::string(what) + ": " + why);
}

void deliver_later(char* to, const void* value, const char* from, size_t bytes, uint32_t barrier,
                   Place place) {
  const Unwatched unwatched;
  Delivery delivery = {to,
                       from,
                       std::vector<char>(bytes),
                       barrier,
                       current->block,
                       place,
                       barrier >> 24 != current->block->rank};
  memcpy(delivery.data.data(), from ? from : value, bytes);
  grid->deliveries.push_back(std::move(delivery));
}

bool deliver(Delivery& delivery) {
  Block& block = *delivery.sender->cluster[delivery.barrier >> 24];
  std::string why;
  if (block.live == 0) why = "the receiving block has exited";
  if (why.empty() && delivery.from && delivery.sender->live == 0) why = "the sender has exited";
  for (size_t i = 0; i < delivery.data.size() && why.empty(); ++i) {
    if (delivery.from && delivery.from[i] != delivery.data[i]) {
      why = "the source was changed before the copy was complete";
    } else if (delivery.to[i] != char(0xff)) {
      why = "the destination was written before the data arrived";
    }
  }
  if (why.empty()) {
    memcpy(delivery.to, delivery.data.data(), delivery.data.size());
    auto* word = reinterpret_cast<uint64_t*>(block.shared + (delivery.barrier & 0xffffff));
    count(word, 0, -int(delivery.data.size()), delivery.remote, &why);
  }
  ++epoch;
  if (why.empty()) return true;
  error = "asynchronous store: " + why + "; sent by block " +
          std::to_string(delivery.sender->linear) + " at " + describe(delivery.place);
  return false;
}

}  // namespace emu
