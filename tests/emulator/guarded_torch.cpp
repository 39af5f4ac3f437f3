// Guarded memory for torch's CPU tensors: full of NaN at first, a page that faults at its end or
// before it. A kernel that reads or writes beyond a tensor is found, and recording.py can tell what
// its arguments point to.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <map>
#include <mutex>

#include "guarded_memory.h"

namespace {

// By address, because torch wants the context of an allocation to be its data.
std::mutex mutex;
std::map<void*, emu::Guarded> live;

void free_guarded(void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  emu::Guarded& memory = live.at(data);
  if (emu::overrun(memory) && emu::error.empty()) {
    emu::error =
        "a kernel wrote beyond the end of a tensor of " + std::to_string(memory.bytes) + " bytes";
  }
  emu::release(memory);
  live.erase(data);
}

struct GuardedAllocator final : c10::Allocator {
  size_t alignment = 64;
  bool begins = false;
  c10::DataPtr allocate(size_t bytes) override {
    const emu::Guarded memory = emu::guarded(bytes ? bytes : 1, alignment, begins);
    memset(memory.data, 0xff, bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    live[memory.data] = memory;
    return {memory.data, memory.data, free_guarded, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free_guarded; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
};

GuardedAllocator guarded_allocator;
c10::Allocator* usual_allocator = nullptr;

}  // namespace

// New tensors are guarded while `alignment` is not 0: 1 puts their last byte before the page that
// faults. `begins` puts their first behind it.
extern "C" __attribute__((visibility("default"))) void emu_guard_torch(int alignment, int begins) {
  if (!usual_allocator) usual_allocator = c10::GetCPUAllocator();
  if (alignment) guarded_allocator.alignment = alignment;
  guarded_allocator.begins = begins;
  c10::SetCPUAllocator(alignment ? &guarded_allocator : usual_allocator, 255);
}
