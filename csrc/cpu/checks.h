// Argument checks of the CPU ops: they name the op, the argument and the offending sizes.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../cells/all.h"
#include "../check.h"

namespace seqkernels {
namespace cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline std::string text(const std::vector<int64_t>& sizes) {
  std::string s = "[";
  for (size_t k = 0; k < sizes.size(); ++k) s += (k ? ", " : "") + std::to_string(sizes[k]);
  return s + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes(x.dim());
  for (int64_t k = 0; k < x.dim(); ++k) sizes[k] = x.size(k);
  return sizes;
}

inline Dtype dtype_of(const char* op, const Tensor& x) {
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

// Checks arguments against one dtype and hands out contiguous pointers; the tensors it made
// contiguous live as long as it does.
class Arguments {
 public:
  Arguments(const char* op, const Tensor& like)
      : op_(op), dtype_(dtype_of(op, like)), type_(like.scalar_type()) {}

  Dtype dtype() const { return dtype_; }

  const void* pointer(const char* name, const Tensor& x, const std::vector<int64_t>& shape) {
    return checked(name, x, shape, type_, "of the dtype of the other arguments");
  }
  const void* pointer(const char* name, const Optional& x, const std::vector<int64_t>& shape) {
    return x ? pointer(name, *x, shape) : nullptr;
  }
  const int64_t* integers(const char* name, const Optional& x, const std::vector<int64_t>& shape) {
    if (!x) return nullptr;
    return static_cast<const int64_t*>(checked(name, *x, shape, ScalarType::Long, "int64"));
  }
  const bool* booleans(const char* name, const Optional& x, const std::vector<int64_t>& shape) {
    if (!x) return nullptr;
    return static_cast<const bool*>(checked(name, *x, shape, ScalarType::Bool, "bool"));
  }

 private:
  const void* checked(const char* name, const Tensor& x, const std::vector<int64_t>& shape,
                      ScalarType type, const char* type_name) {
    SK_CHECK(x.is_cpu(), op_, ": ", name, " must be on the CPU");
    SK_CHECK(x.scalar_type() == type, op_, ": ", name, " must be ", type_name);
    const std::vector<int64_t> sizes = sizes_of(x);
    SK_CHECK(sizes == shape, op_, ": expected ", name, " of size ", text(shape), ", got ",
             text(sizes));
    if (x.is_contiguous()) return x.const_data_ptr();
    kept_.push_back(torch::stable::contiguous(x));
    return kept_.back().const_data_ptr();
  }

  const char* op_;
  Dtype dtype_;
  ScalarType type_;
  std::vector<Tensor> kept_;
};

}  // namespace cpu
}  // namespace seqkernels
