// Arguments of one call of a launcher; emulator.py has the same structures.
#pragma once
#include <cstdint>

enum EmuKind { kInteger = 0, kBuffer = 1, kFloat = 2 };

struct EmuBuffer {
  void* data;
  uint64_t bytes;
};
// A pointer inside a buffer: at `offset` of `buffer` stands the address of buffer `target`.
struct EmuPointer {
  uint64_t buffer, offset, target;
};
// An integer, the number of a buffer, or the bits of a float or double.
struct EmuArgument {
  uint64_t kind, value;
};

extern "C" int emu_run(void* function, EmuBuffer* buffers, int buffer_count,
                       const EmuPointer* pointers, int pointer_count, const EmuArgument* arguments,
                       int argument_count, int schedule, unsigned seed);
extern "C" const char* emu_error();
extern "C" uint64_t emu_switches();
