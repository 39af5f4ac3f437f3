// Three stacked layers of LSTM in float16 without biases, forward and backward in one launch each:
// enough for tests that compile altered copies of the headers, and quick to compile.
#include "cuda/persistent/backward.h"
#include "cuda/persistent/forward.h"
#include "spin_records.h"

namespace {

using namespace seqkernels;

struct Sizes {
  int batch, hidden, steps, processors, shared_per_block, max_cluster, max_units;
};
// What forward and backward are told alike. Returns -1 where there is no plan.
int prepare(SequenceArgs* a, bool backward, const Sizes& s) {
  PlanRequest request;
  request.cell = kCellOf<Lstm>;
  request.backward = backward, request.batch = s.batch, request.hidden = s.hidden;
  request.device = {s.processors, s.shared_per_block, s.max_cluster, s.max_units};
  request.parts = 3, request.stacked = true;
  const Planned planned = make_plan(request);
  if (!planned.refusal.empty()) return -1;
  a->plan = planned.plan;
  a->steps = s.steps;
  a->part_stride = int64_t(s.steps) * s.batch;
  return 0;
}

}  // namespace

#define SK_COMMON                                                                               \
  int batch, int hidden, int steps, int processors, int shared, int cluster, int units,         \
      const void *hh_0, const void *hh_1, const void *hh_2, const void *ih_1, const void *ih_2, \
      const void *h_0, const void *c_0, const int64_t *lengths, const int64_t *order,           \
      void *exchange
#define SK_SET(backward)                                                                       \
  SequenceArgs a;                                                                              \
  if (const int error =                                                                        \
          prepare(&a, backward, {batch, hidden, steps, processors, shared, cluster, units})) { \
    return error;                                                                              \
  }                                                                                            \
  a.weight_hh[0] = hh_0, a.weight_hh[1] = hh_1, a.weight_hh[2] = hh_2;                         \
  a.weight_ih[1] = ih_1, a.weight_ih[2] = ih_2, a.h_0 = h_0, a.c_0 = c_0;                      \
  a.lengths = lengths, a.order = order, a.exchange = exchange

extern "C" int test_layers_forward(SK_COMMON, const void* gates_x, void* output, void* h_n,
                                   void* c_n, void* c_sequence, void* saved) {
  SK_SET(false);
  a.gates_x = gates_x, a.output = output, a.h_n = h_n, a.c_n = c_n;
  a.c_sequence = c_sequence, a.saved = saved;
  return launch_policy<Forward<Lstm, __half>, Format<Math::kHalf>>(a, nullptr);
}

extern "C" int test_layers_backward(SK_COMMON, const void* grad_output, const void* grad_h_n,
                                    const void* grad_c_n, const void* grad_c_sequence, void* output,
                                    void* c_sequence, void* saved, void* grad_gates_x,
                                    void* grad_h_0, void* grad_c_0) {
  SK_SET(true);
  a.grad_output = grad_output, a.grad_h_n = grad_h_n, a.grad_c_n = grad_c_n;
  a.grad_c_sequence = grad_c_sequence, a.output = output, a.c_sequence = c_sequence;
  a.saved = saved, a.grad_gates_x = grad_gates_x, a.grad_h_0 = grad_h_0, a.grad_c_0 = grad_c_0;
  return launch_policy<Backward<Lstm, __half, true>, Format<Math::kHalf>>(a, nullptr);
}
