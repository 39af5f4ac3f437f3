// Between torch and the launchers: the current device and stream, and the few torch ops that the
// bindings call. With -DSK_EMULATE the same bindings serve CPU tensors, and the kernels run in
// tests/emulator.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>

#include "cuda/launch.h"
#include "library.h"
#include "sequence_ops.h"

#ifdef SK_EMULATE
#define SK_DEVICE_KEY CPU
#else
#define SK_DEVICE_KEY CUDA
// In libtorch_cuda. Weak, so that the same library also loads into a CPU build of torch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);
#endif

namespace seqkernels {

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

inline void check_launch(int error, const Op& op) {
  SK_CHECK(error == 0, op, ": CUDA error ", error, ": ", error_name(error));
}

inline ScalarType carry_type(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// Pointers to read and write, null for what is absent.
inline const void* in(const Tensor& x) { return x.numel() > 0 ? x.const_data_ptr() : nullptr; }
inline void* out(const Tensor& x) { return x.numel() > 0 ? x.mutable_data_ptr() : nullptr; }
// Row `row` of a matrix given by its first pointer.
inline const void* rows_at(const void* p, int64_t row, int64_t columns, size_t size) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + row * columns * size;
}
inline void* rows_at(void* p, int64_t row, int64_t columns, size_t size) {
  return p == nullptr ? nullptr : static_cast<char*>(p) + row * columns * size;
}

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

ForwardResult stepwise_forward(Cell cell, const ForwardInputs& inputs);
BackwardResult stepwise_backward(Cell cell, const BackwardInputs& inputs);
ForwardResult persistent_forward(Cell cell, const ForwardInputs& inputs);
BackwardResult persistent_backward(Cell cell, const BackwardInputs& inputs);

// Weights of several recurrences of one launch, each list with one tensor for a part or, where it
// may be absent, with none: of directions and of layers. weight_ih and bias_ih are those of the
// layers above the first.
struct JointWeights {
  Tensors weight_ih, weight_hh, bias_ih, bias_hh;
};
ForwardResult joint_forward(Cell cell, bool stacked, const JointWeights& weights,
                            const Tensor& gates_x, const Tensor& h_0, const Optional& c_0,
                            const RowArgs& rows, bool save);
BackwardResult joint_backward(Cell cell, bool stacked, const JointWeights& weights,
                              const Given& given, const Tensor& h_0, const Optional& c_0,
                              const RowArgs& rows);

}  // namespace seqkernels
