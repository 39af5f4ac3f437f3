// Guarded memory for what the CPU kernels take for themselves: `operator new` with an alignment,
// which csrc/cpu/aligned_memory.h calls. Loaded for all before the kernels are, it takes the place
// of the standard library's.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "guarded_memory.h"

#define SK_EXPORT __attribute__((visibility("default")))

std::string emu::error;

namespace {

std::mutex mutex;
bool on = false, begins = false;
std::map<void*, emu::Guarded> live;
long taken = 0;

void release_workspace(void* p) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = live.find(p);
  if (found == live.end()) return free(p);
  if (emu::overrun(found->second))
    emu::error =
        "a kernel wrote beyond " + std::to_string(found->second.bytes) + " bytes of its own";
  emu::release(found->second);
  live.erase(found);
}

}  // namespace

SK_EXPORT void* operator new(size_t bytes, std::align_val_t alignment) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!on) {
    const size_t unit = size_t(alignment);
    return aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  }
  const emu::Guarded memory = emu::guarded(bytes ? bytes : 1, size_t(alignment), begins);
  memset(memory.data, 0xff, bytes);
  ++taken;
  live[memory.data] = memory;
  return memory.data;
}
SK_EXPORT void operator delete(void* p, std::align_val_t) noexcept { release_workspace(p); }
SK_EXPORT void operator delete(void* p, size_t, std::align_val_t) noexcept { release_workspace(p); }

extern "C" {
void emu_guard_torch(int alignment, int begins);
// All new memory, torch's tensors included.
SK_EXPORT void guard_memory(int guard, int before) {
  on = guard, begins = before;
  emu_guard_torch(guard, before);
}
SK_EXPORT long workspaces_taken() { return taken; }
SK_EXPORT const char* guard_error() { return emu::error.c_str(); }
}
