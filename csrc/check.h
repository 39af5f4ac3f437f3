// Argument checks of the ops. torch's STD_TORCH_CHECK would begin every message with a C++
// function, file and line, which tell the caller nothing.
#pragma once
#include <sstream>
#include <stdexcept>

namespace seqkernels {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

}  // namespace seqkernels

// Raises RuntimeError in Python with a message of all further arguments, one after the other.
#define SK_CHECK(condition, ...)                                            \
  do {                                                                      \
    if (__builtin_expect(!(condition), 0)) ::seqkernels::fail(__VA_ARGS__); \
  } while (0)
