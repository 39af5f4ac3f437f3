// Fibers: a machine state and a stack, and the switch between two of them. Assembly on x86-64 (six
// registers, no system call), ucontext elsewhere and for the race checker.
#pragma once
#include <ucontext.h>

#include <cstddef>

namespace emu {

struct Context {
  void* stack_pointer = nullptr;
  ucontext_t* state = nullptr;
  char* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* checker = nullptr;  // the sanitizer's own notion of the fiber
  bool started = false;
};

// Bytes of stack a fiber needs; sanitizers enlarge frames.
size_t stack_bytes();
// `name` for the race checker's reports.
void create(Context& context, char* stack, void (*entry)(), const char* name);
void destroy(Context& context, bool finished);
// The context of the caller that is not a fiber.
void adopt(Context& context);
void switch_context(Context& from, Context& to);
// First thing a fiber does.
void entered(Context& from);

}  // namespace emu
