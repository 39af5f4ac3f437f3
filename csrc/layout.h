// How the rows of a sequence lie in time, and the sizes of its tensors. No torch header.
#pragma once
#include <cstdint>
#include <vector>

namespace seqkernels {

// Recurrences of one call: none of several, the two directions of a layer, or stacked layers.
struct Parts {
  int64_t count = 0;  // 0: one recurrence, whose states have no dimension for it
  bool stacked = false;
};

struct Layout {
  int64_t steps = 0, batch = 0, hidden = 0;
  bool reverse = false;
  Parts parts;
  // At most one of these two is set.
  const int64_t* lengths = nullptr;      // [N], where the other tensors are
  const int64_t* batch_sizes = nullptr;  // [T] on the CPU: the rows are packed
  const bool* reset = nullptr;           // [T, N], of two directions [2, T, N]
  std::vector<int64_t> offsets;          // [T + 1] rows before a step, of packed rows

  bool packed() const { return batch_sizes != nullptr; }
  int64_t rows(int64_t t) const { return packed() ? (t < steps ? batch_sizes[t] : 0) : batch; }
  int64_t offset(int64_t t) const { return packed() ? offsets[t] : t * batch; }
  int64_t all_rows() const { return offset(steps); }

  // Sizes of what one layer alone takes, with `columns` columns for each direction: of stacked
  // layers the first its input, the last the gradients of its outputs.
  std::vector<int64_t> input_shape(int64_t columns) const {
    if (!parts.stacked && parts.count > 0) columns *= parts.count;
    if (packed()) return {all_rows(), columns};
    return {steps, batch, columns};
  }
  // The same of what every layer has: directions lie side by side, layers one after another.
  std::vector<int64_t> shape(int64_t columns) const {
    std::vector<int64_t> sizes = input_shape(columns);
    if (parts.stacked) sizes.insert(sizes.begin(), parts.count);
    return sizes;
  }
  std::vector<int64_t> state_shape(int64_t columns) const {
    if (parts.count > 0) return {parts.count, batch, columns};
    return {batch, columns};
  }
};

}  // namespace seqkernels
