// Where the time of a step goes: the persistent LSTM kernel in float16, forward and backward, whole
// and without one of its parts. Each build makes one variant, -DSK_VARIANT=Whole or another below.
//
// A variant is a number format that computes in float16, with one part of the loop in
// csrc/cuda/persistent/persistent.h replaced. What is left out takes none of the step; barriers,
// launches and the plan stay. The numbers of a variant without a part mean nothing.
#include "cuda/persistent/backward.h"
#include "cuda/persistent/forward.h"

namespace seqkernels {

struct Whole : Format<Math::kHalf> {
  template <typename P>
  using Policy = P;
};

// Partial sums stay zero.
struct WithoutProduct : Whole {};

template <bool kBackward, int kRegisters>
class Product<WithoutProduct, kBackward, kRegisters> {
 public:
  SK_DEVICE void load(const SequenceArgs& a, const Block& b, const Phase& f, const void*,
                      char* shared) const {
    if (b.warp >= f.row_tiles * f.k_splits) return;
    const int count = kTileRows * a.plan.partial_pitch;
    auto* partial = reinterpret_cast<float*>(shared + a.plan.partial_offset) + b.warp * count;
    for (int i = b.lane; i < count; i += 32) partial[i] = 0.0f;
  }
  SK_DEVICE void run(const Plan&, const Block&, const char*, int = 0) const {}
};

// No partial sum is read and no cell computed. Everything that was fetched still enters what is
// exchanged and stored.
template <typename P>
struct WithoutCell : P {
  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase&, int, bool, const char*,
                         char* values) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const Element& e = this->element[i];
      if (!e.valid) continue;
      auto& v = this->step[i];
      if constexpr (P::kBackward) {
        const float sum = v.grad_new_state[0] + v.grad_new_state[1] + v.new_state[1] + v.state[1];
#pragma unroll
        for (int k = 0; k < Lstm::kGates; ++k) {
          v.grad_gates_x[k] = v.saved[k] + sum;
          stage<M>(a.plan, values, k, e, v.grad_gates_x[k]);
        }
      } else {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < Lstm::kGates; ++k) {
          v.saved[k] = v.gates_x[k];
          sum += v.gates_x[k];
        }
        v.state[0] = v.state[1] = v.new_state[0] = v.new_state[1] = sum;
        stage<M>(a.plan, values, 0, e, sum);
      }
    }
  }
};
struct WithoutPointwise : Format<Math::kHalf> {
  template <typename P>
  using Policy = WithoutCell<P>;
};

// Every step computes with what the first one fetched.
template <typename P>
struct WithoutTraffic : P {
  SK_DEVICE void fetch(const SequenceArgs& a, const Steps& steps, int s, const char* shared) {
    if (s == 0) P::fetch(a, steps, s, shared);
  }
  SK_DEVICE void store(const SequenceArgs&, const Steps&, int, int) const {}
};
struct WithoutMemory : Format<Math::kHalf> {
  template <typename P>
  using Policy = WithoutTraffic<P>;
};

// Blocks neither publish nor wait: nothing can hang. Products read their own values and zeros.
struct WithoutExchange : Whole {};

class NoExchanger : public Exchanger {
 public:
  SK_DEVICE void publish(const Block&, int, int) const {}
  SK_DEVICE void collect(const Block&, int, int) const {}
  SK_DEVICE const char* collect_piece(const Block&, int, int, int) const { return input(0); }
};
template <>
struct ExchangerOf<WithoutExchange> {
  using type = NoExchanger;
};

// The clock of one thread at kPoints points of each step: after the product, the block barrier, the
// pointwise part, the publication, stores and loads, and after the collection.
constexpr int kPoints = 6;

class Stamps {
 public:
  SK_DEVICE void begin(const SequenceArgs& a, int step = 0) {
    step_ = step;
    auto* all = reinterpret_cast<int64_t*>(static_cast<char*>(a.exchange) + a.plan.exchange_bytes);
    to_ = blockIdx.x == 0 && threadIdx.x == 0 ? all : nullptr;
  }
  SK_DEVICE void at(int step, int point) const {
    if (to_ != nullptr) to_[step * kPoints + point] = sk::clock64();
  }
  SK_DEVICE void at(int point) const { at(step_, point); }
  SK_DEVICE void next() { ++step_; }

 private:
  int step_;
  int64_t* to_;
};

template <typename P>
struct StampedPolicy : P {
  template <typename M>
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    P::template begin<M>(a, b, shared);
    stamps.begin(a);
  }
  template <typename M>
  SK_DEVICE void compute(const SequenceArgs& a, const Phase& f, int phase, bool first,
                         const char* shared, char* values) {
    stamps.at(1);
    P::template compute<M>(a, f, phase, first, shared, values);
    stamps.at(2);
    stamps.next();
  }
  // The loads of step s belong to the step before.
  SK_DEVICE void fetch(const SequenceArgs& a, const Steps& steps, int s, const char* shared) {
    P::fetch(a, steps, s, shared);
    if (s > 0) stamps.at(s - 1, 4);
  }
  Stamps stamps;
};
struct Stamped : Format<Math::kHalf> {
  template <typename P>
  using Policy = StampedPolicy<P>;
};

template <bool kBackward, int kRegisters>
class Product<Stamped, kBackward, kRegisters>
    : public Product<Format<Math::kHalf>, kBackward, kRegisters> {
  using Base = Product<Format<Math::kHalf>, kBackward, kRegisters>;

 public:
  SK_DEVICE void load(const SequenceArgs& a, const Block& b, const Phase& f, const void* weight,
                      char* shared) {
    Base::load(a, b, f, weight, shared);
    stamps_.begin(a, kBackward ? 1 : 0);  // the backward's first step has no product
  }
  SK_DEVICE void run(const Plan& p, const Block& b, const char* input, int piece = 0) const {
    Base::run(p, b, input, piece);
    if (piece + 1 < p.pieces) return;
    stamps_.at(0);
    stamps_.next();
  }

 private:
  mutable Stamps stamps_;
};

class StampedExchanger : public Exchanger {
 public:
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    Exchanger::begin(a, b, shared);
    stamps_.begin(a);
  }
  SK_DEVICE void publish(const Block& b, int round, int bytes) const {
    Exchanger::publish(b, round, bytes);
    stamps_.at(round, 3);
  }
  SK_DEVICE void collect(const Block& b, int round, int bytes) const {
    Exchanger::collect(b, round, bytes);
    stamps_.at(round, 5);
  }

 private:
  Stamps stamps_;
};
template <>
struct ExchangerOf<Stamped> {
  using type = StampedExchanger;
};

// A launch and the device that it is planned for, as numbers.
struct Request {
  int32_t backward, steps, batch, hidden;
  int32_t processors, shared_per_block, max_cluster, max_units, clusters[4];
};

namespace {

Planned planned(const Request& r) {
  PlanRequest request;
  request.backward = r.backward != 0;
  request.batch = r.batch, request.hidden = r.hidden;
  request.device = {r.processors, r.shared_per_block, r.max_cluster, r.max_units};
  std::copy_n(r.clusters, 4, request.device.clusters);
  return make_plan(request);
}

template <typename P>
int launch(const Request& r, SequenceArgs a, void* stream) {
  const Planned found = planned(r);
  if (!found.refusal.empty()) return 1;  // cudaErrorInvalidValue
  a.plan = found.plan;
  a.steps = r.steps;
  return launch_policy<SK_VARIANT::Policy<P>, SK_VARIANT>(a, stream);
}

}  // namespace

// facts: exchange (0 none, 1 cluster, 2 L2), blocks of a group, slices, units of a block, pieces,
// and bytes of exchange memory, stamps [steps + 1, kPoints] included, which begin at the last fact.
extern "C" int where_plan(const Request* request, int64_t* facts) {
  const Planned found = planned(*request);
  if (!found.refusal.empty()) return 1;
  const Plan& p = found.plan;
  const int64_t stamps = int64_t(request->steps + 1) * kPoints * sizeof(int64_t);
  const int64_t all[] = {int64_t(p.exchange),       p.blocks,        p.slices, p.units, p.pieces,
                         p.exchange_bytes + stamps, p.exchange_bytes};
  std::copy_n(all, 7, facts);
  return 0;
}

// Tensors as in csrc/ops.cpp, in float16; exchange is zeroed.
extern "C" int where_forward(const Request* request, const void* gates_x, const void* weight_hh,
                             const void* bias_hh, const void* h_0, const void* c_0, void* output,
                             void* h_n, void* c_n, void* c_sequence, void* saved, void* exchange,
                             void* stream) {
  SequenceArgs a;
  a.gates_x = gates_x, a.weight_hh[0] = weight_hh, a.bias_hh[0] = bias_hh;
  a.h_0 = h_0, a.c_0 = c_0, a.output = output, a.h_n = h_n, a.c_n = c_n;
  a.c_sequence = c_sequence, a.saved = saved, a.exchange = exchange;
  return launch<Forward<Lstm, __half>>(*request, a, stream);
}
extern "C" int where_backward(const Request* request, const void* grad_output, const void* grad_h_n,
                              const void* grad_c_n, const void* weight_hh, const void* h_0,
                              const void* c_0, void* output, void* c_sequence, void* saved,
                              void* grad_gates_x, void* grad_h_0, void* grad_c_0, void* exchange,
                              void* stream) {
  SequenceArgs a;
  a.grad_output = grad_output, a.grad_h_n = grad_h_n, a.grad_c_n = grad_c_n;
  a.weight_hh[0] = weight_hh, a.h_0 = h_0, a.c_0 = c_0;
  a.output = output, a.c_sequence = c_sequence, a.saved = saved;
  a.grad_gates_x = grad_gates_x, a.grad_h_0 = grad_h_0, a.grad_c_0 = grad_c_0;
  a.exchange = exchange;
  return launch<Backward<Lstm, __half>>(*request, a, stream);
}

}  // namespace seqkernels
