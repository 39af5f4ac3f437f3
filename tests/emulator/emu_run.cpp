// The way in: calls a launcher with buffers copied to guarded memory, on a chosen schedule. Used by
// emulator.py through ctypes, and by emu_main.cpp in sanitizer builds.
#include "emu_run.h"

#include "emu_state.h"

namespace {

// Passing more arguments than the launcher has is harmless on every 64-bit Linux calling
// convention; integers and pointers go by one register file, floats by the other.
using Launcher = int (*)(double, double, double, double, double, double, double, double, uint64_t,
                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                         uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                         uint64_t, uint64_t, uint64_t);

int call(void* function, const double (&f)[8], const uint64_t (&i)[32]) {
  return reinterpret_cast<Launcher>(function)(
      f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], i[0], i[1], i[2], i[3], i[4], i[5], i[6],
      i[7], i[8], i[9], i[10], i[11], i[12], i[13], i[14], i[15], i[16], i[17], i[18], i[19], i[20],
      i[21], i[22], i[23], i[24], i[25], i[26], i[27], i[28], i[29], i[30], i[31]);
}

}  // namespace

extern "C" int emu_run(void* function, EmuBuffer* buffers, int buffer_count,
                       const EmuPointer* pointers, int pointer_count, const EmuArgument* arguments,
                       int argument_count, int schedule, unsigned seed) {
  using namespace emu;
  emu_begin(schedule, seed);
  std::vector<Guarded> memory;
  for (int b = 0; b < buffer_count; ++b) {
    memory.push_back(guarded(buffers[b].bytes, 16));
    memcpy(memory[b].data, buffers[b].data, buffers[b].bytes);
  }
  for (int p = 0; p < pointer_count; ++p) {
    char* target = memory[pointers[p].target].data + pointers[p].target_offset;
    memcpy(memory[pointers[p].buffer].data + pointers[p].offset, &target, sizeof(target));
  }
  double floats[8] = {};
  uint64_t integers[32] = {};
  int float_count = 0, integer_count = 0;
  for (int a = 0; a < argument_count; ++a) {
    const EmuArgument& argument = arguments[a];
    if (argument.kind == kFloat) {
      if (float_count == 8) return -1;
      memcpy(&floats[float_count++], &argument.value, 8);
    } else {
      if (integer_count == 32) return -1;
      integers[integer_count++] = argument.kind == kBuffer
                                      ? reinterpret_cast<uint64_t>(memory[argument.value].data)
                                      : argument.value;
    }
  }
  const int code = call(function, floats, integers);
  const Unwatched unwatched;
  for (int b = 0; b < buffer_count; ++b) {
    if (error.empty() && overrun(memory[b])) {
      error = "a thread wrote beyond the end of buffer " + std::to_string(b);
    }
    memcpy(buffers[b].data, memory[b].data, buffers[b].bytes);
    release(memory[b]);
  }
  return code;
}

extern "C" void emu_begin(int schedule, unsigned seed) {
  emu::error.clear();
  emu::switches = 0;
  emu::schedule = static_cast<emu::Schedule>(schedule);
  emu::rng.seed(seed);
}
extern "C" void emu_refuse(int code, int clusters, int cooperative, int trials_pass, int resident) {
  emu::refused = {code, clusters != 0, cooperative != 0, trials_pass != 0, resident};
}
extern "C" void emu_record(EmuRecorder recorder) { emu::recorder = recorder; }
extern "C" int emu_replay(int64_t kernel, int64_t invoke, const void* arguments, uint64_t bytes,
                          uint64_t grid_x, uint64_t grid_y, uint64_t grid_z, uint64_t block_x,
                          uint64_t block_y, uint64_t block_z, uint64_t shared_bytes,
                          uint64_t cluster, uint64_t cooperative) {
  char* here = reinterpret_cast<char*>(emu_replay);
  const emu::Call call = {here + kernel,
                          reinterpret_cast<void (*)(void*, const void*)>(here + invoke), arguments,
                          bytes};
  return emu::launch(call, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z),
                     shared_bytes, unsigned(cluster), cooperative != 0);
}
extern "C" const char* emu_error() { return emu::error.c_str(); }
extern "C" uint64_t emu_switches() { return emu::switches; }
