// Argument checks of the ops, the same for every device: a message names the op, the argument and
// the offending sizes. torch's STD_TORCH_CHECK would begin each with a C++ function, file and line,
// which tell the caller nothing.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cells/all.h"

// Raises RuntimeError in Python with a message of all further arguments, one after the other.
#define SK_CHECK(condition, ...)                                            \
  do {                                                                      \
    if (__builtin_expect(!(condition), 0)) ::seqkernels::fail(__VA_ARGS__); \
  } while (0)

namespace seqkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Sizes = std::vector<int64_t>;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string text(const Sizes& sizes) {
  std::string s = "[";
  for (size_t k = 0; k < sizes.size(); ++k) s += (k ? ", " : "") + std::to_string(sizes[k]);
  return s + "]";
}
inline Sizes sizes_of(const Tensor& x) {
  Sizes sizes(x.dim());
  for (int64_t k = 0; k < x.dim(); ++k) sizes[k] = x.size(k);
  return sizes;
}

// The name of an op, put together only where a message needs it.
struct Op {
  const char* cell;  // or of an op that is not of one cell, its whole name
  const char* suffix = "";
};
inline std::ostream& operator<<(std::ostream& out, const Op& op) {
  return out << "seqkernels::" << op.cell << op.suffix;
}

inline Dtype dtype_of(const Tensor& x, const Op& op) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      SK_CHECK(false, op, ": expected float64, float32, float16 or bfloat16 tensors");
  }
}

// Checks arguments against one dtype and device, and gives them out contiguous. Contiguous copies
// live as long as this object.
class Arguments {
 public:
  const Op op;
  const Dtype dtype;

  Arguments(const Op& name, const Tensor& like)
      : op(name),
        dtype(dtype_of(like, name)),
        type_(like.scalar_type()),
        on_cpu_(like.is_cpu()),
        device_(on_cpu_ ? -1 : like.get_device_index()) {}

  Tensor tensor(const char* name, const Tensor& x, const Sizes& sizes) {
    check(name, x, sizes, type_);
    return x.is_contiguous() ? x : torch::stable::contiguous(x);
  }
  Tensors tensors(const char* name, const Tensors& list, const Sizes& sizes) {
    Tensors result;
    for (const Tensor& x : list) result.push_back(tensor(name, x, sizes));
    return result;
  }
  // Pointers are null for what is absent or has no elements.
  const void* pointer(const char* name, const Tensor& x, const Sizes& sizes) {
    return checked(name, x, sizes, type_);
  }
  const void* pointer(const char* name, const Optional& x, const Sizes& sizes) {
    return x ? pointer(name, *x, sizes) : nullptr;
  }
  const int64_t* integers(const char* name, const Optional& x, const Sizes& sizes) {
    return x ? static_cast<const int64_t*>(checked(name, *x, sizes, ScalarType::Long)) : nullptr;
  }
  const bool* booleans(const char* name, const Optional& x, const Sizes& sizes) {
    return x ? static_cast<const bool*>(checked(name, *x, sizes, ScalarType::Bool)) : nullptr;
  }
  // On the CPU, whatever the other arguments' device.
  const int64_t* host_integers(const char* name, const Tensor& x) {
    SK_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Long && x.dim() == 1, op, ": ", name,
             " must be an int64 vector on the CPU, got ", text(sizes_of(x)));
    return static_cast<const int64_t*>(data(x));
  }

 private:
  void check(const char* name, const Tensor& x, const Sizes& sizes, ScalarType type) const {
    bool same = x.dim() == static_cast<int64_t>(sizes.size());
    for (size_t k = 0; same && k < sizes.size(); ++k) same = x.size(k) == sizes[k];
    SK_CHECK(same, op, ": expected ", name, " of size ", text(sizes), ", got ", text(sizes_of(x)));
    SK_CHECK(x.scalar_type() == type, op, ": ", name,
             type == ScalarType::Long   ? " must be int64"
             : type == ScalarType::Bool ? " must be bool"
                                        : " has another dtype than the other arguments");
    SK_CHECK(x.is_cpu() == on_cpu_ && (on_cpu_ || x.get_device_index() == device_), op, ": ", name,
             on_cpu_ ? " must be on the CPU" : " is on another device than the other arguments");
  }
  const void* data(const Tensor& x) {
    if (x.is_contiguous()) return x.numel() > 0 ? x.const_data_ptr() : nullptr;
    kept_.push_back(torch::stable::contiguous(x));
    return data(kept_.back());
  }
  const void* checked(const char* name, const Tensor& x, const Sizes& sizes, ScalarType type) {
    check(name, x, sizes, type);
    return data(x);
  }

  ScalarType type_;
  bool on_cpu_;
  int32_t device_;
  Tensors kept_;
};

// Parameters lie behind the biases.
inline void check_bias(const Op& op, const CellFacts& cell, bool given) {
  SK_CHECK(given || cell.parameters == 0, op,
           ": bias_hh is missing, which holds the cell's parameters");
}
inline const void* bias_pointer(Arguments& a, const CellFacts& cell, int64_t hidden,
                                const Optional& bias_hh) {
  check_bias(a.op, cell, bias_hh.has_value());
  return a.pointer("bias_hh", bias_hh, {(cell.gates + cell.parameters) * hidden});
}
// The states beside h, side by side: they are there where the cell has any.
inline void check_others(const Op& op, const CellFacts& cell, const char* name, const Optional& c) {
  SK_CHECK(c.has_value() == (cell.states > 1), op, ": ", cell.states > 1 ? "" : "this cell has no ",
           name, cell.states > 1 ? " is missing" : "");
}

}  // namespace seqkernels
