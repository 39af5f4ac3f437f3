// Guarded memory for buffers, shared memory and tensors.
#include "guarded_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace emu {

namespace {

constexpr size_t kPage = 4096;

// All guarded memory, by address: torch allocates from several threads.
std::mutex registry_mutex;
std::map<const char*, size_t> registry;

}  // namespace

Guarded guarded(size_t bytes, size_t alignment, bool begins) {
  Guarded memory;
  memory.bytes = bytes;
#ifdef EMU_ASAN
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes ? bytes : 1) != 0) abort();
  memory.base = memory.data = static_cast<char*>(p);
#else
  const size_t padded = (bytes + alignment - 1) / alignment * alignment;
  const size_t body = (padded + kPage - 1) / kPage * kPage;
  memory.mapped = body + kGuard;
  memory.base = static_cast<char*>(mmap(nullptr, memory.mapped, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(begins ? memory.base : memory.base + body, kGuard, PROT_NONE);
  memory.data = begins ? memory.base + kGuard : memory.base + body - padded;
  memory.padding = (begins ? body : padded) - bytes;
  memset(memory.data + bytes, 0xff, memory.padding);
#endif
  const std::lock_guard<std::mutex> lock(registry_mutex);
  registry[memory.data] = bytes;
  return memory;
}

bool overrun(const Guarded& memory) {
  for (size_t i = 0; i < memory.padding; ++i) {
    if (memory.data[memory.bytes + i] != char(0xff)) return true;
  }
  return false;
}

void release(Guarded& memory) {
  {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    registry.erase(memory.data);
  }
#ifdef EMU_ASAN
  free(memory.base);
#else
  munmap(memory.base, memory.mapped);
#endif
  memory = {};
}

}  // namespace emu

extern "C" uint64_t emu_allocation(const void* p, const void** base) {
  const std::lock_guard<std::mutex> lock(emu::registry_mutex);
  auto next = emu::registry.upper_bound(static_cast<const char*>(p));
  if (next == emu::registry.begin()) return 0;
  --next;
  const size_t offset = static_cast<const char*>(p) - next->first;
  if (offset >= next->second) return 0;
  *base = next->first;
  return next->second;
}
