// Memory for the work of the CPU ops.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace seqkernels {
namespace cpu {

// Lives as long as this object, aligned to a vector.
class AlignedMemory {
 public:
  void* take(int64_t bytes) {
    blocks_.emplace_back(::operator new(bytes, kAlignment));
    return blocks_.back().get();
  }
  void* zeros(int64_t bytes) { return std::memset(take(bytes), 0, bytes); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(void* p) const { ::operator delete(p, kAlignment); }
  };
  std::vector<std::unique_ptr<void, Release>> blocks_;
};

}  // namespace cpu
}  // namespace seqkernels
