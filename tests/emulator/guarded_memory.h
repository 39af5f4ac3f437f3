// Memory whose end nobody may cross: a page that faults (the address sanitizer's own red zone when
// that is on), and up to `alignment` bytes of padding that overrun() finds written.
#pragma once
#include <cstddef>
#include <string>

namespace emu {

// Report of the current launch, or of memory that has been freed; empty while all is well.
extern std::string error;

struct Guarded {
  char* data = nullptr;
  size_t bytes = 0;
  size_t padding = 0;  // behind the data
  char* base = nullptr;
  size_t mapped = 0;
};
// `begins`: the page that faults lies before the memory instead, and up to a page of padding
// behind.
Guarded guarded(size_t bytes, size_t alignment, bool begins = false);
bool overrun(const Guarded& memory);
void release(Guarded& memory);

}  // namespace emu
