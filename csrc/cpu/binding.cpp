// The CPU ops: tensors checked and taken apart, results allocated, kernels run.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>

#include "cpu/allocate.h"
#include "cpu/checks.h"
#include "cpu/sequence/kernels.h"
#include "cpu/sequence/schedule.h"
#include "library.h"

namespace seqkernels {
namespace cpu {
namespace {

std::vector<int64_t> with_columns(std::vector<int64_t> rows, int64_t columns) {
  rows.push_back(columns);
  return rows;
}

// Sizes of a sequence and its rows in time. `x` is any of its tensors over time, with a dimension
// of features or, as symbols, without.
struct Shape {
  Layout layout;
  int64_t hidden;
  std::vector<int64_t> rows;  // [T, N], or packed [sum(batch_sizes)]
  const bool* reset;

  Shape(const char* op, Arguments& arguments, const char* name, const Tensor& x, const Tensor& h_0,
        const Optional& lengths, const Optional& batch_sizes, const Optional& reset_steps,
        int64_t features = 1) {
    SK_CHECK(h_0.dim() == 2, op, ": expected h_0 of size [N, H], got ", text(sizes_of(h_0)));
    const int64_t N = h_0.size(0);
    hidden = h_0.size(1);
    SK_CHECK(hidden > 0, op, ": expected a hidden size above 0, got ", text(sizes_of(h_0)));
    layout = Layout{0, N, nullptr, nullptr};
    if (batch_sizes) {
      SK_CHECK(!lengths && !reset_steps, op,
               ": batch_sizes cannot be given together with lengths or reset");
      SK_CHECK(x.dim() == 2, op, ": expected packed ", name, " of 2 dimensions, got ",
               text(sizes_of(x)));
      SK_CHECK(batch_sizes->dim() == 1, op, ": expected batch_sizes of size [T], got ",
               text(sizes_of(*batch_sizes)));
      layout.steps = batch_sizes->size(0);
      layout.batch_sizes = arguments.integers("batch_sizes", batch_sizes, {layout.steps});
      check_batch_sizes(op, name, x);
      rows = {x.size(0)};
    } else {
      SK_CHECK(x.dim() == 2 + features, op, ": expected ", name, " of ", 2 + features,
               " dimensions, got ", text(sizes_of(x)));
      layout.steps = x.size(0);
      layout.lengths = arguments.integers("lengths", lengths, {N});
      for (int64_t n = 0; layout.lengths && n < N; ++n)
        SK_CHECK(layout.lengths[n] >= 0 && layout.lengths[n] <= layout.steps, op,
                 ": lengths must lie between 0 and ", layout.steps, " steps, got ",
                 layout.lengths[n], " for row ", n);
      rows = {layout.steps, N};
    }
    reset = arguments.booleans("reset", reset_steps, rows);
  }

  void fill(Steps& s, Cell cell, Dtype dtype, bool reverse) const {
    s.cell = cell;
    s.dtype = dtype;
    s.steps = layout.steps;
    s.batch = layout.batch;
    s.hidden = hidden;
    s.reset = reset;
    s.reverse = reverse;
  }

 private:
  void check_batch_sizes(const char* op, const char* name, const Tensor& x) const {
    int64_t total = 0, before = layout.batch;
    for (int64_t t = 0; t < layout.steps; ++t) {
      const int64_t size = layout.batch_sizes[t];
      SK_CHECK(t > 0 || size == layout.batch, op, ": batch_sizes begins with ", size,
               " rows, h_0 has ", layout.batch);
      SK_CHECK(size > 0 && size <= before, op, ": batch_sizes must be positive and fall, got ",
               size, " after ", before);
      total += before = size;
    }
    SK_CHECK(total == x.size(0), op, ": batch_sizes add up to ", total, " rows, ", name, " has ",
             x.size(0));
  }
};

template <typename C>
struct Ops {
  using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  using Three = std::tuple<Tensor, Tensor, Tensor>;
  static constexpr int kOthers = kOtherStates<C>, kSeparate = kSeparateColumns<C>;
  static constexpr bool kHasC = kOthers > 0;

  static const char* name(const char* suffix) {
    thread_local std::string text;
    text = std::string(facts(kCellOf<C>).name) + suffix;
    return text.c_str();
  }

  static void check_c(const char* op, const char* what, const Optional& c) {
    SK_CHECK(c.has_value() == kHasC, op, kHasC ? ": expected " : ": has no cell state, got ", what);
  }

  static Five sequence(Tensor gates_x, Tensor weight_hh, Optional bias_hh, Tensor h_0, Optional c_0,
                       Optional lengths, Optional batch_sizes, Optional reset, bool reverse,
                       bool save) {
    const char* op = name("_sequence");
    Arguments a(op, gates_x);
    const Shape shape(op, a, "gates_x", gates_x, h_0, lengths, batch_sizes, reset);
    Forward f = forward(op, a, shape, weight_hh, bias_hh, h_0, c_0, reverse);
    f.gates_x = a.pointer("gates_x", gates_x, with_columns(shape.rows, C::kGates * shape.hidden));
    Five made = results(f, shape, gates_x, save);
    if (is_one_step(f, shape))
      run_one_step(f, gates_x, made);
    else
      run_forward(f, shape.layout);
    return made;
  }

  static Five lookup(Tensor gates, Tensor symbols, Tensor weight_hh, Optional bias_hh, Tensor h_0,
                     Optional c_0, Optional lengths, bool reverse) {
    const char* op = name("_lookup");
    Arguments a(op, gates);
    const Shape shape(op, a, "symbols", symbols, h_0, lengths, {}, {}, 0);
    Forward f = forward(op, a, shape, weight_hh, bias_hh, h_0, c_0, reverse);
    const int64_t V = gates.dim() > 0 ? gates.size(0) : 0;
    f.gates_x = a.pointer("gates", gates, {V, C::kGates * shape.hidden});
    f.symbols = a.integers("symbols", symbols, shape.rows);
    for (int64_t k = 0; k < shape.rows[0] * shape.rows[1]; ++k)
      SK_CHECK(f.symbols[k] >= 0 && f.symbols[k] < V, op, ": symbols must lie between 0 and ",
               V - 1, ", the rows of gates, got ", f.symbols[k]);
    Five made = results(f, shape, gates, true);
    run_forward(f, shape.layout);
    return made;
  }

  // The biases and, behind them, the parameters.
  static const void* bias(const char* op, Arguments& a, const Optional& bias_hh, int64_t H) {
    SK_CHECK(bias_hh || C::kParameters == 0, op, ": bias_hh is missing: it holds the parameters");
    return a.pointer("bias_hh", bias_hh, {(C::kGates + C::kParameters) * H});
  }

  // What does not depend on where a step finds its gates.
  static Forward forward(const char* op, Arguments& a, const Shape& shape, const Tensor& weight_hh,
                         const Optional& bias_hh, const Tensor& h_0, const Optional& c_0,
                         bool reverse) {
    const int64_t N = shape.layout.batch, H = shape.hidden;
    check_c(op, "c_0", c_0);
    Forward f{};
    shape.fill(f, kCellOf<C>, a.dtype(), reverse);
    f.weight_hh = a.pointer("weight_hh", weight_hh, {C::kGates * H, H});
    f.bias_hh = bias(op, a, bias_hh, H);
    f.h_0 = a.pointer("h_0", h_0, {N, H});
    f.c_0 = a.pointer("c_0", c_0, {N, kOthers * H});
    return f;
  }

  // Allocate the results of a sequence and point the call at them.
  static Five results(Forward& f, const Shape& shape, const Tensor& like, bool save) {
    const int64_t N = shape.layout.batch, H = shape.hidden;
    Tensor output = make(like, with_columns(shape.rows, H)), h_n = make(like, {N, H});
    Tensor c_n = kHasC ? make(like, {N, kOthers * H}) : absent(like);
    Tensor c_sequence =
        kHasC && save ? make(like, with_columns(shape.rows, kOthers * H)) : absent(like);
    Tensor saved =
        C::kSaved > 0 && save ? make(like, with_columns(shape.rows, C::kSaved * H)) : absent(like);
    f.output = output.mutable_data_ptr();
    f.h_n = h_n.mutable_data_ptr();
    f.c_n = c_n.mutable_data_ptr();
    if (kHasC && save) f.c_sequence = c_sequence.mutable_data_ptr();
    if (C::kSaved > 0 && save) f.saved = saved.mutable_data_ptr();
    return {output, h_n, c_n, c_sequence, saved};
  }

  // One step of few rows is a product and a cell: packing the weights would take most of its time.
  static bool is_one_step(const Forward& f, const Shape& shape) {
    const Layout& layout = shape.layout;
    const Kernels& k = kernels(kCellOf<C>, f.dtype);
    return layout.steps == 1 && layout.batch <= kFewRows && !layout.lengths &&
           !layout.batch_sizes && !f.reset && products(f.dtype).few_rows && k.cell;
  }
  static void run_one_step(const Forward& f, const Tensor& gates_x, Five& made) {
    auto& [output, h_n, c_n, c_sequence, saved] = made;
    const Kernels& k = kernels(kCellOf<C>, f.dtype);
    const int64_t N = f.batch, H = f.hidden;
    Tensor gates_h = make(gates_x, {N, C::kGates * H});
    void* gates = gates_h.mutable_data_ptr();
    run_few_rows(products(f.dtype), {N, H, C::kGates * H, f.h_0, f.weight_hh, f.bias_hh, gates});
    run_cell(k, {H, f.gates_x, gates, f.h_0, f.c_0, f.output, f.c_n, f.saved}, N);
    std::memcpy(h_n.mutable_data_ptr(), output.const_data_ptr(), N * H * k.compute_size);
    if (f.c_sequence)
      std::memcpy(c_sequence.mutable_data_ptr(), c_n.const_data_ptr(),
                  N * kOthers * H * k.compute_size);
  }

  static Four sequence_backward(Optional grad_output, Optional grad_h_n, Optional grad_c_n,
                                Optional grad_c_sequence, Tensor weight_hh, Optional bias_hh,
                                Tensor h_0, Optional c_0, Tensor output, Tensor c_sequence,
                                Tensor saved, Optional lengths, Optional batch_sizes,
                                Optional reset, bool reverse) {
    const char* op = name("_sequence_backward");
    Arguments a(op, output);
    const Shape shape(op, a, "output", output, h_0, lengths, batch_sizes, reset);
    const int64_t N = shape.layout.batch, H = shape.hidden;
    const std::vector<int64_t> over_time = with_columns(shape.rows, H);
    check_c(op, "c_0", c_0);
    Backward b{};
    shape.fill(b, kCellOf<C>, a.dtype(), reverse);
    b.weight_hh = a.pointer("weight_hh", weight_hh, {C::kGates * H, H});
    b.bias_hh = bias(op, a, bias_hh, H);
    b.grad_output = a.pointer("grad_output", grad_output, over_time);
    b.grad_h_n = a.pointer("grad_h_n", grad_h_n, {N, H});
    b.h_0 = a.pointer("h_0", h_0, {N, H});
    b.output = a.pointer("output", output, over_time);
    if (kHasC) {
      const std::vector<int64_t> others = with_columns(shape.rows, kOthers * H);
      b.grad_c_n = a.pointer("grad_c_n", grad_c_n, {N, kOthers * H});
      b.grad_c_sequence = a.pointer("grad_c_sequence", grad_c_sequence, others);
      b.c_0 = a.pointer("c_0", c_0, {N, kOthers * H});
      b.c_sequence = a.pointer("c_sequence", c_sequence, others);
    }
    if (C::kSaved > 0) b.saved = a.pointer("saved", saved, with_columns(shape.rows, C::kSaved * H));

    Tensor grad_gates_x = make(output, with_columns(shape.rows, C::kGates * H));
    Tensor grad_gates_h =
        kSeparate > 0 ? make(output, with_columns(shape.rows, kSeparate * H)) : absent(output);
    Tensor grad_h_0 = make(output, {N, H});
    Tensor grad_c_0 = kHasC ? make(output, {N, kOthers * H}) : absent(output);
    b.grad_gates_x = grad_gates_x.mutable_data_ptr();
    b.grad_gates_h = grad_gates_h.mutable_data_ptr();
    b.grad_h_0 = grad_h_0.mutable_data_ptr();
    b.grad_c_0 = grad_c_0.mutable_data_ptr();
    run_backward(b, shape.layout);
    return {grad_gates_x, grad_gates_h, grad_h_0, grad_c_0};
  }

  static Three cell(Tensor gates_x, Tensor gates_h, Tensor h, Optional c, bool save) {
    const char* op = name("_cell");
    Arguments a(op, gates_x);
    SK_CHECK(h.dim() == 2, op, ": expected h of size [N, H], got ", text(sizes_of(h)));
    const int64_t N = h.size(0), H = h.size(1);
    check_c(op, "c", c);
    CellForward f{};
    f.hidden = H;
    f.gates_x = a.pointer("gates_x", gates_x, {N, C::kGates * H});
    f.gates_h = a.pointer("gates_h", gates_h, {N, C::kGates * H});
    f.h = a.pointer("h", h, {N, H});
    f.c = a.pointer("c", c, {N, kOthers * H});
    return finish_cell(kernels(kCellOf<C>, a.dtype()), f, gates_x, N, save);
  }

  static Three step(Tensor x, Tensor weight_ih, Tensor weight_hh, Optional bias_ih,
                    Optional bias_hh, Tensor h, Optional c, bool save) {
    const char* op = name("_step");
    Arguments a(op, x);
    SK_CHECK(x.dim() == 2, op, ": expected x of size [N, I], got ", text(sizes_of(x)));
    SK_CHECK(h.dim() == 2, op, ": expected h of size [N, H], got ", text(sizes_of(h)));
    const int64_t N = x.size(0), I = x.size(1), H = h.size(1), rows = C::kGates * H;
    const Products& p = products(a.dtype());
    SK_CHECK(p.few_rows, op, ": expected float32 or float64 tensors");
    check_c(op, "c", c);
    CellForward f{};
    f.hidden = H;
    f.h = a.pointer("h", h, {N, H});
    f.c = a.pointer("c", c, {N, kOthers * H});
    Tensor gates = make(x, {2, N, rows});
    char* gates_x = static_cast<char*>(gates.mutable_data_ptr());
    char* gates_h = gates_x + N * rows * p.compute_size;
    run_few_rows(
        p, {N, I, rows, a.pointer("x", x, {N, I}), a.pointer("weight_ih", weight_ih, {rows, I}),
            a.pointer("bias_ih", bias_ih, {rows}), gates_x});
    run_few_rows(p, {N, H, rows, f.h, a.pointer("weight_hh", weight_hh, {rows, H}),
                     a.pointer("bias_hh", bias_hh, {rows}), gates_h});
    f.gates_x = gates_x;
    f.gates_h = gates_h;
    return finish_cell(kernels(kCellOf<C>, a.dtype()), f, x, N, save);
  }

  // Allocate the results of one step and run the cell.
  static Three finish_cell(const Kernels& k, CellForward& f, const Tensor& like, int64_t N,
                           bool save) {
    const int64_t H = f.hidden;
    const bool keep = C::kSaved > 0 && save;
    Tensor new_h = make(like, {N, H}), new_c = kHasC ? make(like, {N, kOthers * H}) : absent(like);
    Tensor saved = keep ? make(like, {N, C::kSaved * H}) : absent(like);
    f.new_h = new_h.mutable_data_ptr();
    f.new_c = new_c.mutable_data_ptr();
    if (keep) f.saved = saved.mutable_data_ptr();
    run_cell(k, f, N);
    return {new_h, new_c, saved};
  }

  static Four cell_backward(Optional grad_new_h, Optional grad_new_c, Tensor h, Optional c,
                            Tensor new_h, Tensor new_c, Tensor saved) {
    const char* op = name("_cell_backward");
    Arguments a(op, h);
    SK_CHECK(h.dim() == 2, op, ": expected h of size [N, H], got ", text(sizes_of(h)));
    const int64_t N = h.size(0), H = h.size(1);
    check_c(op, "c", c);
    CellBackward b{};
    b.hidden = H;
    b.grad_new_h = a.pointer("grad_new_h", grad_new_h, {N, H});
    b.h = a.pointer("h", h, {N, H});
    b.new_h = a.pointer("new_h", new_h, {N, H});
    if (kHasC) {
      b.grad_new_c = a.pointer("grad_new_c", grad_new_c, {N, kOthers * H});
      b.c = a.pointer("c", c, {N, kOthers * H});
      b.new_c = a.pointer("new_c", new_c, {N, kOthers * H});
    }
    if (C::kSaved > 0) b.saved = a.pointer("saved", saved, {N, C::kSaved * H});
    Tensor grad_gates_x = make(h, {N, C::kGates * H});
    Tensor grad_gates_h = kSeparate > 0 ? make(h, {N, C::kGates * H}) : absent(h);
    Tensor grad_h = make(h, {N, H}), grad_c = kHasC ? make(h, {N, kOthers * H}) : absent(h);
    b.grad_gates_x = grad_gates_x.mutable_data_ptr();
    b.grad_gates_h = grad_gates_h.mutable_data_ptr();
    b.grad_h = grad_h.mutable_data_ptr();
    b.grad_c = grad_c.mutable_data_ptr();
    run_cell_backward(kernels(kCellOf<C>, a.dtype()), b, N);
    return {grad_gates_x, grad_gates_h, grad_h, grad_c};
  }
};

std::string cpu_isa() { return isa_name(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(SK_LIBRARY, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

STABLE_TORCH_LIBRARY_IMPL(SK_LIBRARY, CPU, m) {
#define SK_IMPL(Type, name)                                                       \
  using Ops##Type = Ops<Type>;                                                    \
  m.impl(#name "_sequence", TORCH_BOX((&Ops##Type::sequence)));                   \
  m.impl(#name "_lookup", TORCH_BOX((&Ops##Type::lookup)));                       \
  m.impl(#name "_sequence_backward", TORCH_BOX((&Ops##Type::sequence_backward))); \
  if constexpr (kPointwise<Type>) {                                               \
    m.impl(#name "_step", TORCH_BOX((&Ops##Type::step)));                         \
    m.impl(#name "_cell", TORCH_BOX((&Ops##Type::cell)));                         \
    m.impl(#name "_cell_backward", TORCH_BOX((&Ops##Type::cell_backward)));       \
  }
  SK_FOR_EACH_CELL(SK_IMPL)
#undef SK_IMPL
}

}  // namespace cpu
}  // namespace seqkernels
