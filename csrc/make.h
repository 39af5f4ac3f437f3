// New tensors for the results of ops.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

namespace seqkernels {

// Results on the CPU from this many bytes on ask for huge pages: the first touch of fresh memory
// costs microseconds a page, which for saved gates is a tenth of a training step.
constexpr int64_t kHugeBytes = 4 << 20;

inline void ask_for_huge_pages(const torch::stable::Tensor& x, int64_t bytes) {
#if defined(__linux__)
  // Whole pages around the tensor: what else lies on them is no worse off. Advice may be refused.
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x.const_data_ptr()) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(x.const_data_ptr()) + bytes;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)x, (void)bytes;
#endif
}

// An uninitialised tensor of `like`'s dtype and device. Not new_empty: that goes through the
// dispatcher, boxed, and costs a microsecond more, which shows in a cell.
inline torch::stable::Tensor make(const torch::stable::Tensor& like,
                                  const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t k = sizes.size(); k-- > 1;)
    strides[k - 1] = strides[k] * std::max<int64_t>(sizes[k], 1);
  int32_t dtype, device, index;
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  device, index, &made));
  const torch::stable::Tensor result(made);
  const int64_t bytes = sizes.empty() ? 0 : strides[0] * sizes[0] * result.element_size();
  if (bytes >= kHugeBytes && result.is_cpu()) ask_for_huge_pages(result, bytes);
  return result;
}
// Stands for what is absent.
inline torch::stable::Tensor absent(const torch::stable::Tensor& like) { return make(like, {0}); }
inline torch::stable::Tensor make_if(bool wanted, const torch::stable::Tensor& like,
                                     const std::vector<int64_t>& sizes) {
  return wanted ? make(like, sizes) : absent(like);
}

}  // namespace seqkernels
