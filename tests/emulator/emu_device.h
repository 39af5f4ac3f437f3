// Bodies of the wrappers in csrc/cuda/ptx/device*.h that touch a kernel's memory. Compiled with the
// kernel, and instrumented with it when a sanitizer is on.
#pragma once
#include <type_traits>

namespace emu {

inline char* shared_memory() { return current->block->shared; }
inline unsigned cluster_rank() { return current->block->rank; }
inline unsigned cluster_size() { return grid->cluster; }

// A cluster address is the block's rank above 24 bits of offset.
inline uint32_t shared_address(const void* p) {
  const char* base = current->block->shared;
  const ptrdiff_t offset = static_cast<const char*>(p) - base;
  if (offset < 0 || size_t(offset) > grid->shared_bytes) {
    fail({}, "a shared memory address was asked of a pointer outside the block's shared memory");
  }
  return current->block->rank << 24 | uint32_t(offset);
}
inline uint32_t cluster_address(uint32_t address, unsigned rank) {
  if (rank >= grid->cluster) fail({}, "cluster_address: rank " + std::to_string(rank));
  return rank << 24 | (address & 0xffffff);
}
inline void* shared_pointer(uint32_t address) {
  return current->block->cluster[address >> 24]->shared + (address & 0xffffff);
}

inline bool aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

inline void check_shared(const void* p, size_t bytes, const char* what, Place place) {
  const ptrdiff_t offset = static_cast<const char*>(p) - current->block->shared;
  if (offset < 0 || size_t(offset) + bytes > grid->shared_bytes) {
    fail(place, std::string(what) + ": outside the block's shared memory, offset " +
                    std::to_string(offset) + " of " + std::to_string(grid->shared_bytes));
  }
  if (!aligned(p, bytes)) fail(place, std::string(what) + ": shared address not aligned");
}

// Worst case at both ends: the destination is spoilt when the copy is issued, the data arrives when
// the thread waits, and source and destination must not be touched between.
template <int kSize>
void cp_async(void* shared, const void* global, bool valid, Place place) {
  check_shared(shared, kSize, "cp.async", place);
  if (!aligned(global, kSize)) fail(place, "cp.async: global address not aligned");
  Copy copy = {
      static_cast<char*>(shared), static_cast<const char*>(global), kSize, valid, {}, place};
  if (valid) memcpy(copy.data, global, kSize);
  memset(shared, 0xff, kSize);
  current->copies.push_back(copy);
}
inline void cp_async_commit(Place) { current->commits.push_back(current->copies.size()); }
inline void cp_async_wait(int newest, Place) {
  Fiber& fiber = *current;
  const int finished = int(fiber.commits.size()) - newest;
  if (finished <= 0) return;
  const size_t end = fiber.commits[finished - 1];
  for (size_t i = 0; i < end; ++i) {
    const Copy& copy = fiber.copies[i];
    if (copy.valid && memcmp(copy.data, copy.from, copy.bytes) != 0) {
      fail(copy.place, "the source of this cp.async was changed before its wait");
    }
    for (int b = 0; b < copy.bytes; ++b) {
      if (copy.to[b] != char(0xff)) {
        fail(copy.place, "the destination of this cp.async was written before its wait");
      }
    }
    memcpy(copy.to, copy.data, copy.bytes);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + end);
  fiber.commits.erase(fiber.commits.begin(), fiber.commits.begin() + finished);
  for (size_t& commit : fiber.commits) commit -= end;
}

inline uint64_t* mbarrier_word(uint64_t* barrier, Place place) {
  check_shared(barrier, 8, "mbarrier", place);
  if (*barrier & kInvalid) fail(place, "mbarrier used before mbarrier_init");
  return barrier;
}
inline void mbarrier_init(uint64_t* barrier, unsigned count, Place place) {
  check_shared(barrier, 8, "mbarrier_init", place);
  if (count == 0 || count > kCount) fail(place, "mbarrier_init: count out of range");
  *barrier = uint64_t(count) << kPendingShift | uint64_t(count) << kExpectedShift | kNoBytes;
}
// Names for the race checker: an mbarrier's even and odd phases.
inline void mbarrier_release([[maybe_unused]] uint32_t barrier) {
#ifdef EMU_TSAN
  char* p = static_cast<char*>(shared_pointer(barrier));
  const uint64_t state = __atomic_load_n(reinterpret_cast<uint64_t*>(p), __ATOMIC_RELAXED);
  EMU_RELEASE(p + (state & kPhase ? 4 : 0));
#endif
}
inline void mbarrier_arrive(uint32_t barrier, unsigned bytes, Place place) {
  const bool remote = barrier >> 24 != current->block->rank;
  mbarrier_release(barrier);
  mbarrier_count(barrier, 1, int(bytes), remote, "mbarrier_arrive", place);
  perhaps_preempt("mbarrier_arrive", place);
}
inline bool mbarrier_passed(uint64_t* barrier, unsigned parity, bool cluster, Place place) {
  // Not a kernel access: the core writes this word too.
  const uint64_t state = __atomic_load_n(mbarrier_word(barrier, place), __ATOMIC_RELAXED);
  if (bool(state & kPhase) == bool(parity)) return false;
  if (state & kRemote && !cluster) {
    fail(place, "data of another block was counted on this mbarrier: wait with the cluster form");
  }
  EMU_ACQUIRE(reinterpret_cast<char*>(barrier) + 4 * parity);
  return true;
}
inline bool mbarrier_try_wait(uint64_t* barrier, unsigned parity, bool cluster, Place place) {
  if (mbarrier_passed(barrier, parity, cluster, place)) return true;
  spin(place);
  return false;
}
inline void mbarrier_wait(uint64_t* barrier, unsigned parity, bool cluster, Place place) {
  while (!mbarrier_passed(barrier, parity, cluster, place)) {
    suspend({barrier, kPhase, parity ? kPhase : 0}, "mbarrier_wait", place);
  }
}

template <typename T>
void store_cluster(uint32_t address, T value, Place place) {
  char* p = shared_pointer(address, sizeof(T), "store_cluster", place);
  memcpy(p, &value, sizeof(T));
}
// Where the data of an asynchronous store will go: spoilt until it is there.
inline char* spoil(uint32_t address, size_t bytes, uint32_t barrier, const char* what,
                   Place place) {
  char* p = shared_pointer(address, bytes, what, place);
  if (address >> 24 != barrier >> 24) {
    fail(place, std::string(what) + ": data and mbarrier lie in different blocks");
  }
  shared_pointer(barrier, 8, what, place);
  memset(p, 0xff, bytes);
  mbarrier_release(barrier);
  return p;
}
template <typename T>
void store_async(uint32_t address, T value, uint32_t barrier, Place place) {
  char* p = spoil(address, sizeof(T), barrier, "store_async", place);
  deliver_later(p, &value, nullptr, sizeof(T), barrier, place);
  perhaps_preempt("store_async", place);
}
inline void bulk_copy(uint32_t address, const void* from, unsigned bytes, uint32_t barrier,
                      Place place) {
  if (bytes == 0 || bytes % 16) fail(place, "bulk copy: size not a multiple of 16");
  if (!aligned(from, 16)) fail(place, "bulk copy: source not aligned to 16");
#ifdef EMU_TSAN
  for (unsigned i = 0; i < bytes; i += 16) (void)static_cast<const volatile char*>(from)[i];
#endif
  char* p = spoil(address, bytes, barrier, "bulk copy", place);
  deliver_later(p, nullptr, static_cast<const char*>(from), bytes, barrier, place);
  perhaps_preempt("bulk copy", place);
}

template <typename T>
T load_acquire(const T* p, Place place) {
  count_poll(place);
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <typename T>
void store_release(T* p, T value, Place place) {
  perhaps_preempt("store_release", place);
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
  changed();
  perhaps_preempt("store_release", place);
}
inline void add_release(uint32_t* p, uint32_t value, Place place) {
  perhaps_preempt("add_release", place);
  __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
  changed();
  perhaps_preempt("add_release", place);
}
inline void wait_at_least(const uint32_t* counter, uint32_t target, Place place) {
  while (int32_t(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - target) < 0) {
    suspend({nullptr, 0, 0, counter, target}, "wait_at_least", place);
  }
}
inline uint64_t load_relaxed(const uint64_t* p, Place place) {
  count_poll(place);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
inline void store_relaxed(uint64_t* p, uint64_t value, Place place) {
  perhaps_preempt("store_relaxed", place);
  __atomic_store_n(p, value, __ATOMIC_RELAXED);
  changed();
  perhaps_preempt("store_relaxed", place);
}
template <typename Word>
void load_relaxed_128(const Word* p, Word* value, Place place) {
  if (!aligned(p, 16)) fail(place, "128-bit load: address not aligned to 16");
  count_poll(place);
  value->low = __atomic_load_n(&p->low, __ATOMIC_RELAXED);
  value->high = __atomic_load_n(&p->high, __ATOMIC_RELAXED);
}
template <typename Word>
void store_relaxed_128(Word* p, const Word* value, Place place) {
  if (!aligned(p, 16)) fail(place, "128-bit store: address not aligned to 16");
  perhaps_preempt("store_relaxed", place);
  __atomic_store_n(&p->low, value->low, __ATOMIC_RELAXED);
  __atomic_store_n(&p->high, value->high, __ATOMIC_RELAXED);
  changed();
  perhaps_preempt("store_relaxed", place);
}

template <int N>
void ldmatrix(uint32_t (&r)[N], const void* row, Place place) {
  const Fiber& fiber = *current;
  if (fiber.lane < 8 * N) check_shared(row, 16, "ldmatrix", place);
  Meeting& meeting = meet(~0u, "ldmatrix", place, &row, sizeof(row), true);
  for (int i = 0; i < N; ++i) {
    const char* p;
    read_slot(meeting, 8 * i + fiber.lane / 4, &p, sizeof(p));
    memcpy(&r[i], p + fiber.lane % 4 * 4, 4);
  }
  leave(meeting);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* what,
                void (*finish)(Meeting&), Place place) {
  Fragments own;
  memcpy(own.a, a, sizeof(a));
  memcpy(own.b, b, sizeof(b));
  memcpy(own.d, d, sizeof(d));
  Meeting& meeting = meet(~0u, what, place, &own, sizeof(own), true, finish);
  read_slot(meeting, current->lane, &own, sizeof(own));
  memcpy(d, own.d, sizeof(d));
  leave(meeting);
}
template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  mma(d, a, b, "mma_m16n8k16", kHalf ? finish_mma_half : finish_mma_bfloat16, place);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Place place) {
  mma(d, a, b, "mma_m16n8k8_tf32", finish_mma_tf32, place);
}

inline uint32_t to_tf32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000;
}
// The instruction's error is at most 2^-11 relative; so is this one's.
inline float tanh_approx(float x) {
  const float y = std::tanh(x);
  uint32_t bits;
  memcpy(&bits, &y, 4);
  if (std::isnan(y)) return y;
  bits = (bits + 0x1000) & 0xffffe000;
  float rounded;
  memcpy(&rounded, &bits, 4);
  return rounded;
}

}  // namespace emu
