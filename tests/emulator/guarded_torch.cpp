// Guarded memory for torch's CPU tensors: full of NaN at first, a page that faults at its end. A
// kernel that reads or writes beyond a tensor is found, and recording.py can tell what its
// arguments point to.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <mutex>

#include "emu_state.h"

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
  c10::DataPtr allocate(size_t bytes) override {
    const emu::Guarded memory = emu::guarded(bytes ? bytes : 1, 64);
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

// New tensors are guarded while this is on.
extern "C" __attribute__((visibility("default"))) void emu_guard_torch(int on) {
  if (!usual_allocator) usual_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? &guarded_allocator : usual_allocator, 255);
}
