// The persistent kernels of one cell and number format, LSTM in float16: enough for tests that
// compile altered copies of the headers, and quick to compile.
#include "cuda/persistent/backward.h"
#include "cuda/persistent/forward.h"
#include "spin_records.h"

namespace {

using namespace seqkernels;

// What forward and backward are told alike. Returns -1 where there is no plan.
struct Device {
  int processors, max_cluster, max_units;
};
int prepare(SequenceArgs* a, bool backward, int batch, int hidden, int steps, int reverse,
            const Device& device) {
  PlanRequest request;
  request.cell = kCellOf<Lstm>;
  request.backward = backward, request.batch = batch, request.hidden = hidden;
  request.device.processors = device.processors;
  request.device.max_cluster = device.max_cluster, request.device.max_units = device.max_units;
  const Planned planned = make_plan(request);
  if (!planned.refusal.empty()) return -1;
  a->plan = planned.plan;
  a->steps = steps, a->reverse = reverse;
  return 0;
}

}  // namespace

#define SK_COMMON                                                                                \
  int batch, int hidden, int steps, int reverse, int processors, int max_cluster, int max_units, \
      const void *weight_hh, const void *h_0, const void *c_0, const int64_t *lengths,           \
      const int64_t *order, void *exchange

extern "C" int test_persistent_forward(SK_COMMON, const void* gates_x, const void* bias_hh,
                                       void* output, void* h_n, void* c_n, void* c_sequence,
                                       void* saved) {
  SequenceArgs a;
  const Device device{processors, max_cluster, max_units};
  if (const int error = prepare(&a, false, batch, hidden, steps, reverse, device)) return error;
  a.weight_hh[0] = weight_hh, a.h_0 = h_0, a.c_0 = c_0, a.lengths = lengths, a.order = order;
  a.exchange = exchange, a.gates_x = gates_x, a.bias_hh[0] = bias_hh, a.output = output;
  a.h_n = h_n, a.c_n = c_n, a.c_sequence = c_sequence, a.saved = saved;
  return launch_policy<Forward<Lstm, __half>, Format<Math::kHalf>>(a, nullptr);
}

extern "C" int test_persistent_backward(SK_COMMON, const void* grad_output, const void* grad_h_n,
                                        const void* grad_c_n, const void* grad_c_sequence,
                                        void* output, void* c_sequence, void* saved,
                                        void* grad_gates_x, void* grad_h_0, void* grad_c_0) {
  SequenceArgs a;
  const Device device{processors, max_cluster, max_units};
  if (const int error = prepare(&a, true, batch, hidden, steps, reverse, device)) return error;
  a.weight_hh[0] = weight_hh, a.h_0 = h_0, a.c_0 = c_0, a.lengths = lengths, a.order = order;
  a.exchange = exchange, a.grad_output = grad_output, a.grad_h_n = grad_h_n;
  a.grad_c_n = grad_c_n, a.grad_c_sequence = grad_c_sequence, a.output = output;
  a.c_sequence = c_sequence, a.saved = saved, a.grad_gates_x = grad_gates_x;
  a.grad_h_0 = grad_h_0, a.grad_c_0 = grad_c_0;
  return launch_policy<Backward<Lstm, __half>, Format<Math::kHalf>>(a, nullptr);
}
