// Asynchronous copies, transaction barriers, and the exchange of data between blocks through global
// memory. Included by device.h.
#pragma once

namespace sk {

// cp.async: global to shared memory without registers. A copy has arrived only after
// cp_async_commit and cp_async_wait by the SAME thread, and for other threads only after a barrier
// that follows; until then both source and destination belong to the copy. With valid = false the
// destination becomes zeros and the source is not read (it must still be an address). Aligned to
// the size.
SK_DEVICE void cp_async_16(void* shared, const void* global, bool valid = true SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::cp_async<16>(shared, global, valid, place);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#endif
}
SK_DEVICE void cp_async_commit(SK_PLACE) {
#ifdef SK_EMULATE
  emu::cp_async_commit(place);
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the N newest groups of this thread are still on their way.
template <int N>
SK_DEVICE void cp_async_wait(SK_PLACE) {
#ifdef SK_EMULATE
  emu::cp_async_wait(N, place);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// mbarrier: 8 bytes of shared memory. A phase is complete when `count` arrivals and all expected
// bytes have come in; the next phase begins at once. Phases have parity 0, 1, 0, ... and a waiter
// names the parity it waits for. One thread initialises, then mbarrier_init_fence and a block (or
// cluster) barrier let everyone use it.
SK_DEVICE void mbarrier_init(uint64_t* barrier, unsigned count SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::mbarrier_init(barrier, count, place);
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
#endif
}
SK_DEVICE void mbarrier_init_fence() {
#ifndef SK_EMULATE
  SK_PTX90("fence.mbarrier_init.release.cluster;" :: : "memory");
#endif
}
// Arrive releases this thread's writes to the waiters of the own block.
SK_DEVICE void mbarrier_arrive(uint64_t* barrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::mbarrier_arrive(emu::shared_address(barrier), 0, place);
#else
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                   shared_address(barrier))
               : "memory");
#endif
}
// One arrival, and `bytes` more to come by store_async or bulk copies before the phase can
// complete.
SK_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, unsigned bytes SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::mbarrier_arrive(emu::shared_address(barrier), bytes, place);
#else
  SK_PTX90("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
           "r"(bytes) : "memory");
#endif
}
// Arrive at the barrier of any block of the cluster, given by cluster_address; releases this
// thread's writes, remote ones included, to those who wait with mbarrier_wait_cluster.
SK_DEVICE void mbarrier_arrive_cluster(uint32_t barrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::mbarrier_arrive(barrier, 0, place);
#else
  SK_PTX90(
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
// Has the phase of this parity completed? The hardware may suspend the thread for a while first; in
// a build that counts polls for a microsecond, so that their number bounds the time.
#ifdef SK_SPIN_LIMIT
#define SK_SUSPEND ", 1000"
#else
#define SK_SUSPEND ""
#endif
// Acquires what local arrivals released; the `_cluster` forms what the whole cluster released.
SK_DEVICE bool mbarrier_try_wait(uint64_t* barrier, unsigned parity SK_AND_PLACE) {
#ifdef SK_EMULATE
  return emu::mbarrier_try_wait(barrier, parity, false, place);
#else
  uint32_t done = 0;
  SK_PTX90(
      "{\n.reg .pred complete;\n"
      "mbarrier.try_wait.parity.shared.b64 complete, [%1], %2" SK_SUSPEND
      ";\n"
      "selp.u32 %0, 1, 0, complete;\n}" : "=r"(done) : "r"(shared_address(barrier)),
      "r"(parity) : "memory");
  return done != 0;
#endif
}
SK_DEVICE bool mbarrier_try_wait_cluster(uint64_t* barrier, unsigned parity SK_AND_PLACE) {
#ifdef SK_EMULATE
  return emu::mbarrier_try_wait(barrier, parity, true, place);
#else
  uint32_t done = 0;
  SK_PTX90(
      "{\n.reg .pred complete;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2" SK_SUSPEND
      ";\n"
      "selp.u32 %0, 1, 0, complete;\n}" : "=r"(done) : "r"(shared_address(barrier)),
      "r"(parity) : "memory");
  return done != 0;
#endif
}
// Until it has; `round` is for the report of a wait that gives up.
SK_DEVICE void mbarrier_wait(uint64_t* barrier, unsigned parity, int round = -1 SK_AND_PLACE) {
#if defined(SK_EMULATE) && !defined(SK_SPIN_LIMIT)
  emu::mbarrier_wait(barrier, parity, false, place);
#else
  Polls polls(Wait::kBarrier, round, -1);
  while (!mbarrier_try_wait(barrier, parity)) polls.missed();
#endif
}
SK_DEVICE void mbarrier_wait_cluster(uint64_t* barrier, unsigned parity,
                                     int round = -1 SK_AND_PLACE) {
#if defined(SK_EMULATE) && !defined(SK_SPIN_LIMIT)
  emu::mbarrier_wait(barrier, parity, true, place);
#else
  Polls polls(Wait::kBarrier, round, -1);
  while (!mbarrier_try_wait_cluster(barrier, parity)) polls.missed();
#endif
}

// Bulk copies by one thread: `bytes` a multiple of 16, all addresses aligned to 16; completion
// counts the bytes on the mbarrier beside the destination. From global memory into the own block,
// and from the own shared memory into that of a block of the cluster (addresses from
// cluster_address). Plain stores to the source must be followed by async_proxy_fence in the storing
// threads and a barrier.
SK_DEVICE void bulk_copy_from_global(void* shared, const void* global, unsigned bytes,
                                     uint64_t* barrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::bulk_copy(emu::shared_address(shared), global, bytes, emu::shared_address(barrier), place);
#else
  SK_PTX90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)) : "memory");
#endif
}
SK_DEVICE void bulk_copy_to_cluster(uint32_t address, const void* shared, unsigned bytes,
                                    uint32_t barrier SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::bulk_copy(address, shared, bytes, barrier, place);
#else
  SK_PTX90(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(address),
      "r"(shared_address(shared)), "r"(bytes), "r"(barrier) : "memory");
#endif
}
SK_DEVICE void async_proxy_fence() {
#ifndef SK_EMULATE
  SK_PTX90("fence.proxy.async.shared::cta;" :: : "memory");
#endif
}

// Counters in global memory at GPU scope. What a thread wrote before (and what it learned through a
// block barrier) is visible to whoever acquires the value it released.
SK_DEVICE uint32_t load_acquire(const uint32_t* p SK_AND_PLACE) {
#ifdef SK_EMULATE
  return emu::load_acquire(p, place);
#else
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}
SK_DEVICE void store_release(uint32_t* p, uint32_t value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_release(p, value, place);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}
SK_DEVICE void add_release(uint32_t* p, uint32_t value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::add_release(p, value, place);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}
// Waits until the counter has reached `target`; right across the wrap at 2^32. `peer`, who counts,
// is for the report of a wait that gives up.
SK_DEVICE void wait_at_least(const uint32_t* counter, uint32_t target, int peer = -1 SK_AND_PLACE) {
#if defined(SK_EMULATE) && !defined(SK_SPIN_LIMIT)
  emu::wait_at_least(counter, target, place);
#else
  Polls polls(Wait::kCounter, static_cast<int>(target), peer);
  while (static_cast<int32_t>(load_acquire(counter) - target) < 0) polls.missed();
#endif
}
// A barrier over the `blocks` blocks that share `counter`, all co-resident. The counter is zero at
// launch; `round` counts the barriers of this launch, beginning with 1. All threads call it.
SK_DEVICE void grid_barrier(uint32_t* counter, unsigned blocks, unsigned round SK_AND_PLACE) {
#ifdef SK_EMULATE
  __syncthreads(place);
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    sk::add_release(counter, 1, place);
    sk::wait_at_least(counter, blocks * round, -1, place);
  }
  __syncthreads(place);
#else
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    add_release(counter, 1);
    wait_at_least(counter, blocks * round);
  }
  __syncthreads();
#endif
}

// Words that carry data and their own flag: one access, never torn, so a reader that sees the flag
// has the data and needs no acquire. 64 bits, and 128 bits (.b128 accesses are single-copy atomic).
struct alignas(16) Word128 {
  uint64_t low, high;
};
SK_DEVICE uint64_t load_relaxed(const uint64_t* p SK_AND_PLACE) {
#ifdef SK_EMULATE
  return emu::load_relaxed(p, place);
#else
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
#endif
}
SK_DEVICE void store_relaxed(uint64_t* p, uint64_t value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_relaxed(p, value, place);
#else
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
#endif
}
SK_DEVICE Word128 load_relaxed(const Word128* p SK_AND_PLACE) {
  Word128 value;
#ifdef SK_EMULATE
  emu::load_relaxed_128(p, &value, place);
#else
  asm volatile(
      "{\n.reg .b128 word;\nld.relaxed.gpu.global.b128 word, [%2];\nmov.b128 {%0, %1}, word;\n}"
      : "=l"(value.low), "=l"(value.high)
      : "l"(p)
      : "memory");
#endif
  return value;
}
SK_DEVICE void store_relaxed(Word128* p, Word128 value SK_AND_PLACE) {
#ifdef SK_EMULATE
  emu::store_relaxed_128(p, &value, place);
#else
  asm volatile(
      "{\n.reg .b128 word;\nmov.b128 word, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::
          "l"(p),
      "l"(value.low), "l"(value.high)
      : "memory");
#endif
}

// A plain load that skips the L1 cache.
template <typename T>
SK_DEVICE T load_l2(const T* p) {
#ifdef SK_EMULATE
  return *p;
#else
  return __ldcg(p);
#endif
}

}  // namespace sk
