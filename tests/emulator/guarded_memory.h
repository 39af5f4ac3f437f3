// Memory whose end nobody may cross: behind it lie pages that fault (the address sanitizer's own
// red zone when that is on), and up to `alignment` bytes of padding that overrun() finds written.
#pragma once
#include <cstddef>
#include <string>

namespace emu {

// Report of the current launch, or of memory that has been freed; empty while all is well.
extern std::string error;

// Wide enough for a warp that writes what it has no room for. Address space alone, no memory.
constexpr size_t kGuard = 64 << 10;

struct Guarded {
  char* data = nullptr;
  size_t bytes = 0;
  size_t padding = 0;  // behind the data
  char* base = nullptr;
  size_t mapped = 0;
};
// `begins`: the pages that fault lie before the memory instead, and up to a page of padding behind.
Guarded guarded(size_t bytes, size_t alignment, bool begins = false);
bool overrun(const Guarded& memory);
void release(Guarded& memory);

}  // namespace emu
