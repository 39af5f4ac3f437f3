// Arguments of one call of a launcher; emulator.py has the same structures.
#pragma once
#include <cstdint>

enum EmuKind { kInteger = 0, kBuffer = 1, kFloat = 2 };

struct EmuBuffer {
  void* data;
  uint64_t bytes;
};
// A pointer inside a buffer: at `offset` of `buffer` stands an address in buffer `target`.
struct EmuPointer {
  uint64_t buffer, offset, target, target_offset;
};
// An integer, the number of a buffer, or the bits of a float or double.
struct EmuArgument {
  uint64_t kind, value;
};

// Told of a launch before it runs: the kernel, the function that calls it with a tuple of
// arguments, the tuple, and nine numbers as emu_replay takes them.
using EmuRecorder = void (*)(void* kernel, void* invoke, const void* arguments, uint64_t bytes,
                             const uint64_t* numbers);

extern "C" int emu_run(void* function, EmuBuffer* buffers, int buffer_count,
                       const EmuPointer* pointers, int pointer_count, const EmuArgument* arguments,
                       int argument_count, int schedule, unsigned seed);
// Begins a call: forgets the last report and picks a schedule.
extern "C" void emu_begin(int schedule, unsigned seed);
extern "C" const char* emu_error();
// Which launches are refused from now on, see Refused.
extern "C" void emu_refuse(int code, int clusters, int cooperative, int trials_pass, int resident);
extern "C" void emu_record(EmuRecorder recorder);
// Launches a recorded kernel, which lies `kernel` bytes from this function, as does `invoke`.
extern "C" int emu_replay(int64_t kernel, int64_t invoke, const void* arguments, uint64_t bytes,
                          uint64_t grid_x, uint64_t grid_y, uint64_t grid_z, uint64_t block_x,
                          uint64_t block_y, uint64_t block_z, uint64_t shared_bytes,
                          uint64_t cluster, uint64_t cooperative);
// The guarded allocation in which `p` lies: its size, or 0 where there is none.
extern "C" uint64_t emu_allocation(const void* p, const void** base);
extern "C" uint64_t emu_switches();
