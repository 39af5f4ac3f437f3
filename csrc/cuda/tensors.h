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
#include "../library.h"
#include "cuda/launch.h"

#ifdef SK_EMULATE
#define SK_DEVICE_KEY CPU
#else
#define SK_DEVICE_KEY CUDA
// In libtorch_cuda. Weak, so that the same library also loads into a CPU build of torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);
#endif

namespace seqkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

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
inline const void* in(const Optional& x) {
  return x.has_value() && x->numel() > 0 ? x->const_data_ptr() : nullptr;
}
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

// What an op is told of the rows of its sequence.
struct RowArgs {
  Optional lengths, batch_sizes, reset;
  bool reverse = false;
};

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
  std::vector<int64_t> state_shape(int64_t columns) const {
    if (parts > 0) return {parts, batch, columns};
    return {batch, columns};
  }
};

// `steps_at`: the dimension of `sequence` that counts steps; 1 where it holds every layer's.
inline Layout layout_of(const Tensor& sequence, const Tensor& h_0, const RowArgs& args,
                        const std::string& op, int64_t parts = 0, bool stacked = false,
                        int64_t steps_at = 0) {
  const auto& [lengths, batch_sizes, reset, reverse] = args;
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

// What an op gives: a new tensor for each result that the cell has, absent ones for the others.
inline Tensor new_if(bool wanted, const Tensor& like, const std::vector<int64_t>& sizes) {
  return wanted ? torch::stable::new_empty(like, sizes) : absent(like);
}
inline ForwardResult new_results(const CellFacts& spec, const Layout& l, const Tensor& like,
                                 bool save) {
  const int64_t hidden = l.hidden, others = (spec.states - 1) * hidden;
  return {torch::stable::new_empty(like, l.shape(hidden)),
          torch::stable::new_empty(like, l.state_shape(hidden)),
          new_if(spec.states > 1, like, l.state_shape(others)),
          new_if(spec.states > 1 && save, like, l.shape(others)),
          new_if(spec.saved > 0 && save, like, l.shape(spec.saved * hidden))};
}
// Columns / H of grad_gates_h: separate gates, then parameters.
inline int separate_columns(const CellFacts& spec) {
  return size_of_set(spec.separate) + spec.parameters;
}
inline BackwardResult new_grads(const CellFacts& spec, const Layout& l, const Tensor& like) {
  const int64_t hidden = l.hidden;
  return {torch::stable::new_empty(like, l.shape(spec.gates * hidden)),
          new_if(separate_columns(spec) > 0, like, l.shape(separate_columns(spec) * hidden)),
          torch::stable::new_empty(like, l.state_shape(hidden)),
          new_if(spec.states > 1, like, l.state_shape((spec.states - 1) * hidden))};
}

// The states beside h, side by side: they are there where the cell has any.
inline void check_others(const CellFacts& spec, const Optional& c, const Tensor& like,
                         const std::vector<int64_t>& sizes, const std::string& op,
                         const char* name) {
  SK_CHECK(c.has_value() == (spec.states > 1), "seqkernels::", op, ": ",
           spec.states > 1 ? "" : "this cell has no ", name, spec.states > 1 ? " is missing" : "");
  check_like(c, like, sizes, op, name);
}
inline void check_bias(const CellFacts& spec, int64_t hidden, const Optional& bias_hh,
                       const Tensor& like, const std::string& op) {
  SK_CHECK(bias_hh.has_value() || spec.parameters == 0, "seqkernels::", op,
           ": bias_hh is missing, which holds the cell's parameters");
  check_like(bias_hh, like, {(spec.gates + spec.parameters) * hidden}, op, "bias_hh");
}
inline void check_weights(const CellFacts& spec, const Layout& l, const Tensor& weight_hh,
                          const Tensor& h_0, const Optional& c_0, const std::string& op) {
  check_like(weight_hh, h_0, {spec.gates * l.hidden, l.hidden}, op, "weight_hh");
  check_others(spec, c_0, h_0, l.state_shape((spec.states - 1) * l.hidden), op, "c_0");
}
inline void check_forward(const CellFacts& spec, const Layout& l, const Tensor& gates_x,
                          const Tensor& weight_hh, const Tensor& h_0, const Optional& c_0,
                          const std::string& op) {
  check_weights(spec, l, weight_hh, h_0, c_0, op);
  check_like(gates_x, h_0, l.input_shape(spec.gates * l.hidden), op, "gates_x");
}

// What a backward is given beside its weights: gradients, and results of the forward.
struct Given {
  Optional grad_output, grad_h_n, grad_c_n, grad_c_sequence;
  Tensor output, c_sequence, saved;
};
inline void check_backward(const CellFacts& spec, const Layout& l, const Given& g,
                           const Tensor& weight_hh, const Tensor& h_0, const Optional& c_0,
                           const std::string& op) {
  const int64_t hidden = l.hidden, others = (spec.states - 1) * hidden;
  check_weights(spec, l, weight_hh, h_0, c_0, op);
  check_like(g.output, h_0, l.shape(hidden), op, "output");
  check_like(g.grad_output, h_0, l.input_shape(hidden), op, "grad_output");
  check_like(g.grad_h_n, h_0, l.state_shape(hidden), op, "grad_h_n");
  if (spec.states > 1) {
    check_like(g.grad_c_n, h_0, l.state_shape(others), op, "grad_c_n");
    check_like(g.grad_c_sequence, h_0, l.input_shape(others), op, "grad_c_sequence");
    check_like(g.c_sequence, h_0, l.shape(others), op, "c_sequence");
  }
  if (spec.saved > 0) check_like(g.saved, h_0, l.shape(spec.saved * hidden), op, "saved");
}
// The same, contiguous, without what the cell does not have.
inline Given dense(const CellFacts& spec, const Given& g) {
  const bool others = spec.states > 1;
  return {dense(g.grad_output),
          dense(g.grad_h_n),
          others ? dense(g.grad_c_n) : std::nullopt,
          others ? dense(g.grad_c_sequence) : std::nullopt,
          dense(g.output),
          others ? dense(g.c_sequence) : absent(g.output),
          spec.saved > 0 ? dense(g.saved) : absent(g.output)};
}

ForwardResult stepwise_forward(Cell cell, Tensor gates_x, Tensor weight_hh, Optional bias_hh,
                               Tensor h_0, Optional c_0, const RowArgs& rows, bool save);
BackwardResult stepwise_backward(Cell cell, Given given, Tensor weight_hh, Optional bias_hh,
                                 Tensor h_0, Optional c_0, const RowArgs& rows);
ForwardResult persistent_forward(Cell cell, Tensor gates_x, Tensor weight_hh, Optional bias_hh,
                                 Tensor h_0, Optional c_0, const RowArgs& rows, bool save);
BackwardResult persistent_backward(Cell cell, Given given, Tensor weight_hh, Optional bias_hh,
                                   Tensor h_0, Optional c_0, const RowArgs& rows);
// Several recurrences in one launch.
ForwardResult directions_forward(Cell cell, Tensor gates_x, Tensors weight_hh, Tensors bias_hh,
                                 Tensor h_0, Optional c_0, const RowArgs& rows, bool save);
BackwardResult directions_backward(Cell cell, Given given, Tensors weight_hh, Tensors bias_hh,
                                   Tensor h_0, Optional c_0, const RowArgs& rows);
ForwardResult layers_forward(Cell cell, Tensor gates_x, Tensors weight_ih, Tensors weight_hh,
                             Tensors bias_ih, Tensors bias_hh, Tensor h_0, Optional c_0,
                             const RowArgs& rows, bool save);
BackwardResult layers_backward(Cell cell, Given given, Tensors weight_ih, Tensors weight_hh,
                               Tensors bias_hh, Tensor h_0, Optional c_0, const RowArgs& rows);

}  // namespace seqkernels
