#include "cpu/sequence/schedule.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "cpu/sequence/group.h"

namespace seqkernels {
namespace cpu {
namespace {

// Weights that one thread can hold in half of a common second-level cache.
constexpr int64_t kResidentBytes = 512 * 1024;
// Multiply-adds that are worth a wait between threads, and worth waking them at all.
constexpr int64_t kWorthWaiting = 32 * 1024, kWorthWaking = 256 * 1024;
// Rows of a slice below which the product has too few sums under way.
constexpr int64_t kRowsPerSlice = 4;

// Rows are split into slices that never wait for each other; the units of a slice into shares.
struct Split {
  int64_t slices = 1, shares = 1;
};

Split split_work(const Steps& s, int64_t panels, int64_t compute_size) {
  Split split;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t weights = facts(s.cell).gates * s.hidden * s.hidden;
  const int64_t step = weights * s.batch;
  if (threads <= 1 || step * s.steps < kWorthWaking) return split;
  split.shares =
      std::max<int64_t>(1, (weights * compute_size + kResidentBytes - 1) / kResidentBytes);
  split.shares = std::min({split.shares, threads, panels});
  split.slices = std::min(threads / split.shares, (s.batch + kRowsPerSlice - 1) / kRowsPerSlice);
  split.slices = std::max<int64_t>(split.slices, 1);
  split.shares = std::min(threads / split.slices, panels);
  if (step / split.slices < kWorthWaiting) split.shares = 1;
  return split;
}

struct Rows {
  std::vector<int64_t> row, length, active;
};

// The rows of every slice by falling length. Lengths go round the slices, so that each gets its
// share of short rows; without lengths a slice is a run of neighbours.
std::vector<Rows> slice_rows(const Layout& layout, int64_t slices) {
  const int64_t N = layout.batch, T = layout.steps;
  std::vector<int64_t> order(N), length(N, T);
  std::iota(order.begin(), order.end(), 0);
  if (layout.lengths) {
    std::copy(layout.lengths, layout.lengths + N, length.begin());
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  }
  if (layout.batch_sizes) {
    std::fill(length.begin(), length.end(), 0);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t r = 0; r < layout.batch_sizes[t]; ++r) ++length[r];
  }
  const bool ragged = layout.lengths || layout.batch_sizes;
  std::vector<Rows> result(slices);
  for (int64_t k = 0; k < N; ++k) {
    Rows& rows = result[ragged ? k % slices : k * slices / N];
    rows.row.push_back(order[k]);
    rows.length.push_back(length[order[k]]);
  }
  for (Rows& rows : result) {
    int64_t active = rows.row.size();
    for (int64_t t = 0; t < T; ++t) {
      while (active > 0 && rows.length[active - 1] <= t) --active;
      rows.active.push_back(active);
    }
  }
  return result;
}

// Bytes handed out from one tensor, in two passes: measure, then point.
class Workspace {
 public:
  void* take(int64_t bytes) {
    char* p = base_ + offset_;
    offset_ += (bytes + 63) / 64 * 64;
    return base_ ? p : nullptr;
  }
  void allocate() {
    const auto byte = torch::headeronly::ScalarType::Byte;
    memory_ = torch::stable::empty({offset_ + 64}, byte);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
    base_ = reinterpret_cast<char*>((start + 63) / 64 * 64);
    offset_ = 0;
  }

 private:
  torch::stable::Tensor memory_;
  char* base_ = nullptr;
  int64_t offset_ = 0;
};

template <typename Call, typename Pack, typename Run>
void run_slices(const Call& call, const Split& split, const std::vector<Slice>& slices,
                int64_t panels, int64_t phases, Pack pack, Run run) {
  const auto first_panel = [&](int64_t share) { return panels * share / split.shares; };
  if (split.slices == 1 && split.shares == 1) {
    for (int64_t phase = 0; phase < phases; ++phase) run(call, slices[0], phase, 0, panels);
    return;
  }
  if (!call.pack_inside)
    torch::stable::parallel_for(0, panels, 1, [&](int64_t p0, int64_t p1) { pack(call, p0, p1); });
  std::vector<std::unique_ptr<Group>> groups;
  for (int64_t k = 0; k < split.slices; ++k) groups.emplace_back(new Group(split.shares));
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t k = begin / split.shares; k * split.shares < end; ++k) {
      const int64_t home0 = std::max(begin - k * split.shares, int64_t(0));
      const int64_t home1 = std::min(end - k * split.shares, split.shares);
      groups[k]->work(phases, home0, home1, [&](int64_t phase, int64_t share) {
        run(call, slices[k], phase, first_panel(share), first_panel(share + 1));
      });
    }
  };
  torch::stable::parallel_for(0, split.slices * split.shares, 1, body);
}

// What both directions share: split, rows, strides and the packed weights. `place` gives each slice
// its workspace and `finish` the call its own.
template <typename Call, typename Place>
void prepare_and_run(Call call, const Layout& layout, int64_t units, int64_t ends,
                     void (*pack)(const Call&, int64_t, int64_t),
                     void (*run)(const Call&, const Slice&, int64_t, int64_t, int64_t),
                     const Kernels& k, Place place) {
  if (layout.batch == 0) return;
  const CellFacts& cell = facts(call.cell);
  const int64_t panels = (call.hidden + units - 1) / units;
  const Split split = split_work(call, panels, k.compute_size);
  // A cache line more than a power of two keeps rows out of each other's cache sets; a whole vector
  // may be read past the last unit.
  const int64_t line = 64 / k.compute_size;
  call.stride = (call.hidden + line - 1) / line * line + line;
  call.gates_stride = (cell.gates * call.hidden + line - 1) / line * line + line;
  call.padded = layout.lengths != nullptr;
  call.pack_inside = split.slices == 1;

  std::vector<int64_t> first_row(layout.steps);
  for (int64_t t = 0; t < layout.steps; ++t) first_row[t] = layout.offset(t);
  call.first_row = first_row.data();
  const std::vector<Rows> rows = slice_rows(layout, split.slices);
  std::vector<Slice> slices(split.slices);
  Workspace workspace;
  for (int pass = 0; pass < 2; ++pass) {
    const int64_t vectors = panels * units * k.compute_size;
    call.packed = workspace.take(vectors * cell.gates * call.hidden);
    call.packed_bias = workspace.take(vectors * (cell.gates + cell.parameters));
    for (int64_t g = 0; g < split.slices; ++g) {
      slices[g] = Slice{};
      slices[g].rows = rows[g].row.size();
      slices[g].row = rows[g].row.data();
      slices[g].length = rows[g].length.data();
      slices[g].active = rows[g].active.data();
      place(call, slices[g], workspace);
    }
    if (pass == 0) workspace.allocate();
  }
  run_slices(call, split, slices, panels, call.steps * cell.stages + ends, pack, run);
}

}  // namespace

void run_forward(Forward f, const Layout& layout) {
  const Kernels& k = kernels(f.cell, f.dtype);
  const auto place = [&](const Forward& call, Slice& g, Workspace& workspace) {
    const int64_t state = g.rows * call.stride * k.compute_size;
    g.h[0] = workspace.take(state);
    g.h[1] = workspace.take(state);
    const CellFacts& cell = facts(call.cell);
    g.others = workspace.take(state * (cell.states - 1));
    if (cell.stages > 1) {
      g.operand = workspace.take(state);
      g.kept = workspace.take(state * size_of_set(cell.kept));
    }
  };
  prepare_and_run(f, layout, k.forward_units, kForwardEnds, k.pack_forward, k.forward, k, place);
}

void run_backward(Backward b, const Layout& layout) {
  const Kernels& k = kernels(b.cell, b.dtype);
  const auto place = [&](const Backward& call, Slice& g, Workspace& workspace) {
    const int64_t state = g.rows * call.stride * k.compute_size;
    g.grad_gates[0] = workspace.take(g.rows * call.gates_stride * k.compute_size);
    g.grad_gates[1] = workspace.take(g.rows * call.gates_stride * k.compute_size);
    g.grad_h = workspace.take(state);
    g.grad_others = workspace.take(state * (facts(call.cell).states - 1));
  };
  prepare_and_run(b, layout, k.backward_units, kBackwardEnds, k.pack_backward, k.backward, k,
                  place);
}

namespace {
// A row of a cell is some ten operations a unit; below this many units a thread is not worth
// waking.
constexpr int64_t kCellUnitsPerThread = 16 * 1024;

template <typename Body>
void over_rows(int64_t rows, int64_t hidden, const Body& body) {
  if (rows * hidden <= kCellUnitsPerThread) return body(0, rows);
  const int64_t grain = std::max<int64_t>(1, kCellUnitsPerThread / hidden);
  torch::stable::parallel_for(0, rows, grain, body);
}
}  // namespace

void run_few_rows(const Products& products, const FewRows& f) {
  // A thread reads at least half a megabyte of weights.
  const int64_t grain =
      std::max<int64_t>(8, kResidentBytes / std::max<int64_t>(f.depth * products.compute_size, 1));
  if (f.count <= grain) return products.few_rows(f, 0, f.count);
  // Runs of eight columns, as the kernel takes them: their bounds do not depend on the threads.
  torch::stable::parallel_for(0, (f.count + 7) / 8, grain / 8, [&](int64_t begin, int64_t end) {
    products.few_rows(f, begin * 8, std::min(end * 8, f.count));
  });
}

void run_cell(const Kernels& kernels, const CellForward& f, int64_t rows) {
  over_rows(rows, f.hidden, [&](int64_t row0, int64_t row1) { kernels.cell(f, row0, row1); });
}

void run_cell_backward(const Kernels& kernels, const CellBackward& b, int64_t rows) {
  over_rows(rows, b.hidden,
            [&](int64_t row0, int64_t row1) { kernels.cell_backward(b, row0, row1); });
}

}  // namespace cpu
}  // namespace seqkernels
