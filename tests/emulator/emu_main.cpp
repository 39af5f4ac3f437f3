// Runs one call from a file, for builds that must be programs of their own: emu_main CASE RESULT.
// CASE: symbol's length and name, then counts and arrays as in emu_run.h (buffers: size, bytes).
// RESULT: the code, the report's length and text, the switches, and the buffers' bytes.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "emu_run.h"

namespace {

FILE* file;

void read_bytes(void* p, size_t bytes) {
  if (bytes && fread(p, 1, bytes, file) != bytes) abort();
}
uint64_t read_number() {
  uint64_t n;
  read_bytes(&n, sizeof(n));
  return n;
}
template <typename T>
std::vector<T> read_array() {
  std::vector<T> values(read_number());
  read_bytes(values.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || !(file = fopen(argv[1], "rb"))) return 2;
  const std::vector<char> name = read_array<char>();
  const uint64_t schedule = read_number(), seed = read_number();
  std::vector<std::vector<char>> data(read_number());
  std::vector<EmuBuffer> buffers;
  for (auto& bytes : data) {
    bytes = read_array<char>();
    buffers.push_back({bytes.data(), bytes.size()});
  }
  const auto pointers = read_array<EmuPointer>();
  const auto arguments = read_array<EmuArgument>();
  fclose(file);
  void* function = dlsym(RTLD_DEFAULT, std::string(name.begin(), name.end()).c_str());
  if (!function) return 2;
  const int code =
      emu_run(function, buffers.data(), int(buffers.size()), pointers.data(), int(pointers.size()),
              arguments.data(), int(arguments.size()), int(schedule), unsigned(seed));
  if (!(file = fopen(argv[2], "wb"))) return 2;
  const std::string report = emu_error();
  const uint64_t head[3] = {uint64_t(code), report.size(), emu_switches()};
  fwrite(head, sizeof(head), 1, file);
  fwrite(report.data(), 1, report.size(), file);
  for (const EmuBuffer& buffer : buffers) fwrite(buffer.data, 1, buffer.bytes, file);
  fclose(file);
  return 0;
}
