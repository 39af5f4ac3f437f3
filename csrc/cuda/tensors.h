// Between torch and the launchers: checks of arguments, the current device and stream, and the few
// torch ops that the bindings call. With -DSK_EMULATE the same bindings serve CPU tensors, and the
// kernels run in tests/emulator.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../check.h"
#include "launch.h"

#ifndef SK_EMULATE
// In libtorch_cuda. Weak, so that the same library also loads into a CPU build of torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);
#endif

namespace seqkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

// What cells.h says of a cell, as values.
struct CellSizes {
  Cell cell;
  const char* name;
  int64_t gates, states, saved, hidden;
};
template <typename C>
constexpr CellSizes sizes_of(Cell cell, const char* name) {
  return {cell, name, C::kGates, C::kStates, C::kSaved, C::kHidden};
}

// The device of `like` is current while this lives; `stream` is torch's current stream there.
class OnDevice {
 public:
#ifdef SK_EMULATE
  explicit OnDevice(const Tensor&) { take_facts(); }
#else
  explicit OnDevice(const Tensor& like)
      : index(like.get_device_index()), guard_(like.get_device_index()) {
    SK_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
             "seqkernels: this torch was built without CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    take_facts();
  }
#endif
  int32_t index = 0;
  void* stream = nullptr;
  DeviceFacts facts;

 private:
  void take_facts() {
    const std::string refusal = device_facts(index, &facts);
    SK_CHECK(refusal.empty(), "seqkernels: ", refusal);
  }
#ifndef SK_EMULATE
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline void check_launch(int error, const std::string& what) {
  SK_CHECK(error == 0, "seqkernels::", what, ": CUDA error ", error, ": ", error_name(error));
}

inline Dtype dtype_of(const Tensor& x, const std::string& op) {
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
      SK_CHECK(false, "seqkernels::", op,
               ": expected float64, float32, float16 or bfloat16 tensors");
  }
}
inline ScalarType carry_type(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

inline std::string shape(const Tensor& x) {
  std::string text = "[";
  for (int64_t i = 0; i < x.dim(); ++i) text += (i ? ", " : "") + std::to_string(x.size(i));
  return text + "]";
}
inline void check_shape(const Tensor& x, const std::vector<int64_t>& sizes, const std::string& op,
                        const char* name) {
  bool same = x.dim() == static_cast<int64_t>(sizes.size());
  std::string wanted = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    same = same && x.size(static_cast<int64_t>(i)) == sizes[i];
    wanted += (i ? ", " : "") + std::to_string(sizes[i]);
  }
  SK_CHECK(same, "seqkernels::", op, ": expected ", name, " of shape ", wanted, "], got ",
           shape(x));
}
// Shape, and the dtype and device of `like`.
inline void check_like(const Tensor& x, const Tensor& like, const std::vector<int64_t>& sizes,
                       const std::string& op, const char* name) {
  check_shape(x, sizes, op, name);
  SK_CHECK(x.scalar_type() == like.scalar_type(), "seqkernels::", op, ": ", name,
           " has another dtype than the other arguments");
  SK_CHECK(x.get_device_index() == like.get_device_index() && x.is_cpu() == like.is_cpu(),
           "seqkernels::", op, ": ", name, " is on another device than the other arguments");
}
inline void check_like(const Optional& x, const Tensor& like, const std::vector<int64_t>& sizes,
                       const std::string& op, const char* name) {
  if (x.has_value()) check_like(*x, like, sizes, op, name);
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}
inline Optional dense(const Optional& x) { return x.has_value() ? Optional(dense(*x)) : x; }
inline Tensors dense(Tensors list) {
  for (Tensor& x : list) x = dense(x);
  return list;
}

// Pointers to read and write, null for what is absent.
inline const void* in(const Optional& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }
inline void* out(const Tensor& x) { return x.numel() == 0 ? nullptr : x.mutable_data_ptr(); }
// Row `row` of a matrix given by its first pointer.
inline const void* rows_at(const void* p, int64_t row, int64_t columns, size_t size) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + row * columns * size;
}
inline void* rows_at(void* p, int64_t row, int64_t columns, size_t size) {
  return p == nullptr ? nullptr : static_cast<char*>(p) + row * columns * size;
}

inline Tensor absent(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

// out = a b, without a new tensor.
inline void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

// Indices of `x`, a vector, from its largest value to its smallest; equal ones stay in order.
inline Tensor longest_first(const Tensor& x) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(x), torch::stable::detail::from(true),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(true)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::argsort", "stable", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The layout of one call: how many steps and rows there are and where the rows of a step lie.
struct Layout {
  int64_t steps = 0, batch = 0, hidden = 0;
  std::vector<int64_t> sizes, offsets;  // packed: rows of a step, and where they begin
  Optional lengths, reset;
  bool reverse = false;
  // Several recurrences: 0 is one, whose states have no dimension for it.
  int64_t parts = 0;
  bool stacked = false;

  bool packed() const { return !sizes.empty(); }
  int64_t rows(int64_t t) const { return packed() ? (t < steps ? sizes[t] : 0) : batch; }
  int64_t offset(int64_t t) const { return packed() ? offsets[t] : t * batch; }
  // The sizes of a sequence-shaped tensor with `columns` columns for each part: directions lie side
  // by side, layers one after another.
  std::vector<int64_t> shape(int64_t columns) const {
    std::vector<int64_t> sizes = input_shape(columns);
    if (stacked) sizes.insert(sizes.begin(), parts);
    return sizes;
  }
  // The same for what one layer alone takes: the first its input, the last gradients of its
  // outputs.
  std::vector<int64_t> input_shape(int64_t columns) const {
    if (!stacked && parts > 0) columns *= parts;
    if (packed()) return {offsets[steps], columns};
    return {steps, batch, columns};
  }
  std::vector<int64_t> state_shape() const {
    if (parts > 0) return {parts, batch, hidden};
    return {batch, hidden};
  }
};

// `steps_at`: the dimension of `sequence` that counts steps; 1 where it holds every layer's.
inline Layout layout_of(const Tensor& sequence, const Tensor& h_0, const Optional& lengths,
                        const Optional& batch_sizes, const Optional& reset, bool reverse,
                        const std::string& op, int64_t parts = 0, bool stacked = false,
                        int64_t steps_at = 0) {
  Layout l;
  l.parts = parts, l.stacked = stacked;
  const int64_t dims = parts > 0 ? 3 : 2;
  SK_CHECK(h_0.dim() == dims && (parts == 0 || h_0.size(0) == parts), "seqkernels::", op,
           ": expected h_0 of shape [", parts > 0 ? std::to_string(parts) + ", " : "",
           "N, H], got ", shape(h_0));
  l.batch = h_0.size(dims - 2);
  l.hidden = h_0.size(dims - 1);
  l.reverse = reverse;
  if (batch_sizes.has_value()) {
    SK_CHECK(!lengths.has_value() && !reset.has_value(), "seqkernels::", op,
             ": batch_sizes cannot be combined with lengths or reset");
    SK_CHECK(batch_sizes->is_cpu() && batch_sizes->scalar_type() == ScalarType::Long &&
                 batch_sizes->dim() == 1,
             "seqkernels::", op, ": batch_sizes must be an int64 vector on the CPU");
    const Tensor counts = dense(*batch_sizes);
    const int64_t* p = counts.const_data_ptr<int64_t>();
    l.steps = counts.numel();
    l.sizes.assign(p, p + l.steps);
    l.offsets.assign(1, 0);
    int64_t above = l.batch;
    for (const int64_t n : l.sizes) {
      SK_CHECK(n > 0 && n <= above, "seqkernels::", op,
               ": batch_sizes must not rise, nor exceed the batch of ", l.batch);
      above = n;
      l.offsets.push_back(l.offsets.back() + n);
    }
    SK_CHECK(l.steps > 0, "seqkernels::", op, ": batch_sizes is empty");
    SK_CHECK(sequence.dim() == steps_at + 2 && sequence.size(steps_at) == l.offsets.back(),
             "seqkernels::", op, ": expected packed input of ", l.offsets.back(), " rows, got ",
             shape(sequence));
  } else {
    SK_CHECK(sequence.dim() == steps_at + 3 && sequence.size(steps_at + 1) == l.batch,
             "seqkernels::", op, ": expected input of shape [T, ", l.batch, ", .], got ",
             shape(sequence));
    l.steps = sequence.size(steps_at);
  }
  const auto check_device = [&](const Optional& x, ScalarType type, const char* name) {
    if (!x.has_value()) return;
    SK_CHECK(x->scalar_type() == type, "seqkernels::", op, ": ", name, " must be ",
             type == ScalarType::Long ? "int64" : "bool");
    SK_CHECK(x->get_device_index() == h_0.get_device_index() && x->is_cpu() == h_0.is_cpu(),
             "seqkernels::", op, ": ", name, " is on another device than the input");
  };
  if (lengths.has_value()) check_shape(*lengths, {l.batch}, op, "lengths");
  if (reset.has_value()) {
    std::vector<int64_t> sizes{l.steps, l.batch};
    if (parts > 0 && !stacked) sizes.insert(sizes.begin(), parts);
    check_shape(*reset, sizes, op, "reset");
  }
  check_device(lengths, ScalarType::Long, "lengths");
  check_device(reset, ScalarType::Bool, "reset");
  l.lengths = dense(lengths);
  l.reset = dense(reset);
  return l;
}

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline void check_weights(const CellSizes& spec, const Layout& l, const Tensor& weight_hh,
                          const Tensor& h_0, const Optional& c_0, const std::string& op) {
  check_like(weight_hh, h_0, {spec.gates * l.hidden, l.hidden}, op, "weight_hh");
  SK_CHECK(c_0.has_value() == (spec.states == 2), "seqkernels::", op,
           spec.states == 2 ? ": c_0 is missing" : ": this cell has no c_0");
  check_like(c_0, h_0, l.state_shape(), op, "c_0");
}
inline void check_forward(const CellSizes& spec, const Layout& l, const Tensor& gates_x,
                          const Tensor& weight_hh, const Optional& bias_hh, const Tensor& h_0,
                          const Optional& c_0, const std::string& op) {
  check_weights(spec, l, weight_hh, h_0, c_0, op);
  check_like(gates_x, h_0, l.input_shape(spec.gates * l.hidden), op, "gates_x");
  check_like(bias_hh, h_0, {spec.gates * l.hidden}, op, "bias_hh");
}
inline void check_backward(const CellSizes& spec, const Layout& l, const Optional& grad_output,
                           const Optional& grad_h_n, const Optional& grad_c_n,
                           const Optional& grad_c_sequence, const Tensor& weight_hh,
                           const Tensor& h_0, const Optional& c_0, const Tensor& output,
                           const Tensor& c_sequence, const Tensor& saved, const std::string& op) {
  check_weights(spec, l, weight_hh, h_0, c_0, op);
  check_like(output, h_0, l.shape(l.hidden), op, "output");
  check_like(grad_output, h_0, l.input_shape(l.hidden), op, "grad_output");
  check_like(grad_h_n, h_0, l.state_shape(), op, "grad_h_n");
  if (spec.states == 2) {
    check_like(grad_c_n, h_0, l.state_shape(), op, "grad_c_n");
    check_like(grad_c_sequence, h_0, l.input_shape(l.hidden), op, "grad_c_sequence");
    check_like(c_sequence, h_0, l.shape(l.hidden), op, "c_sequence");
  }
  if (spec.saved) check_like(saved, h_0, l.shape(spec.saved * l.hidden), op, "saved");
}

#define SK_FORWARD_PARAMETERS                                                             \
  const CellSizes &spec, Tensor gates_x, Tensor weight_hh, Optional bias_hh, Tensor h_0,  \
      Optional c_0, Optional lengths, Optional batch_sizes, Optional reset, bool reverse, \
      bool save
#define SK_BACKWARD_PARAMETERS                                                                 \
  const CellSizes &spec, Optional grad_output, Optional grad_h_n, Optional grad_c_n,           \
      Optional grad_c_sequence, Tensor weight_hh, Tensor h_0, Optional c_0, Tensor output,     \
      Tensor c_sequence, Tensor saved, Optional lengths, Optional batch_sizes, Optional reset, \
      bool reverse
ForwardResult stepwise_forward(SK_FORWARD_PARAMETERS);
BackwardResult stepwise_backward(SK_BACKWARD_PARAMETERS);
ForwardResult persistent_forward(SK_FORWARD_PARAMETERS);
BackwardResult persistent_backward(SK_BACKWARD_PARAMETERS);
// Several recurrences in one launch.
ForwardResult directions_forward(const CellSizes& spec, Tensor gates_x, Tensors weight_hh,
                                 Tensors bias_hh, Tensor h_0, Optional c_0, Optional lengths,
                                 Optional batch_sizes, Optional reset, bool save);
BackwardResult directions_backward(const CellSizes& spec, Optional grad_output, Optional grad_h_n,
                                   Optional grad_c_n, Optional grad_c_sequence, Tensors weight_hh,
                                   Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                   Tensor saved, Optional lengths, Optional batch_sizes,
                                   Optional reset);
ForwardResult layers_forward(const CellSizes& spec, Tensor gates_x, Tensors weight_ih,
                             Tensors weight_hh, Tensors bias_ih, Tensors bias_hh, Tensor h_0,
                             Optional c_0, Optional lengths, Optional batch_sizes, Optional reset,
                             bool save);
BackwardResult layers_backward(const CellSizes& spec, Optional grad_output, Optional grad_h_n,
                               Optional grad_c_n, Optional grad_c_sequence, Tensors weight_ih,
                               Tensors weight_hh, Tensor h_0, Optional c_0, Tensor output,
                               Tensor c_sequence, Tensor saved, Optional lengths,
                               Optional batch_sizes, Optional reset);
#undef SK_FORWARD_PARAMETERS
#undef SK_BACKWARD_PARAMETERS

}  // namespace seqkernels
