#include "emu_fiber.h"

#if defined(EMU_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
#elif defined(EMU_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
}
#endif

#if defined(__x86_64__) && !defined(EMU_TSAN)
#define EMU_ASSEMBLY
// It jumps to where it returns: a processor predicts by the last jump, which went the same way, but
// a return by the last call, which another fiber made.
asm(R"(.text
.local emu_switch
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
)");
extern "C" void emu_switch(void** save, void* to);
#endif

namespace emu {

size_t stack_bytes() {
#if defined(EMU_ASAN) || defined(EMU_TSAN)
  return 256 << 10;
#else
  return 16 << 10;  // the deepest of the tests was 6.3 KB
#endif
}

void create(Context& context, char* stack, void (*entry)(), [[maybe_unused]] const char* name) {
  context.stack = stack;
  context.stack_bytes = stack_bytes();
#ifdef EMU_ASSEMBLY
  // At the entry of a function the stack is 16-byte aligned minus the return address.
  void** top = reinterpret_cast<void**>(stack + context.stack_bytes) - 1;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
#else
  context.state = new ucontext_t;
  getcontext(context.state);
  context.state->uc_stack.ss_sp = stack;
  context.state->uc_stack.ss_size = context.stack_bytes;
  context.state->uc_link = nullptr;
  makecontext(context.state, entry, 0);
#endif
#if defined(EMU_ASAN)
  __asan_unpoison_memory_region(stack, context.stack_bytes);
#elif defined(EMU_TSAN)
  context.checker = __tsan_create_fiber(0);
  __tsan_set_fiber_name(context.checker, name);
#endif
}

void destroy(Context& context, [[maybe_unused]] bool finished) {
#ifdef EMU_TSAN
  // The checker ends the program over a thread that did not finish; the program ends soon anyway.
  if (finished) __tsan_destroy_fiber(context.checker);
#endif
  delete context.state;
}

void adopt(Context& context) {
#ifndef EMU_ASSEMBLY
  if (!context.state) context.state = new ucontext_t;
#endif
#ifdef EMU_TSAN
  context.checker = __tsan_get_current_fiber();
#endif
  context.started = true;
}

void switch_context(Context& from, Context& to) {
#if defined(EMU_ASAN)
  __sanitizer_start_switch_fiber(&from.checker, to.stack, to.stack_bytes);
#elif defined(EMU_TSAN)
  // Host writes happen before a thread's first step. After that a switch orders nothing (flag 1):
  // only the kernel's own synchronisation does, so that races show.
  __tsan_switch_to_fiber(to.checker, to.started ? 1 : 0);
#endif
  to.started = true;
#ifdef EMU_ASSEMBLY
  emu_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(from.state, to.state);
#endif
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(from.checker, nullptr, nullptr);
#endif
}

void entered([[maybe_unused]] Context& from) {
#ifdef EMU_ASAN
  const void* bottom;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &from.stack_bytes);
  from.stack = static_cast<char*>(const_cast<void*>(bottom));
#endif
}

}  // namespace emu
