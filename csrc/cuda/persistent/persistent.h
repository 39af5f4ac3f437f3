// The loop that all persistent sequence kernels share. A policy (forward.h, backward.h) says what
// a step reads, computes and writes; Product and Exchanger do the rest.
#pragma once
#include "cuda/persistent/exchange.h"
#include "cuda/persistent/stack.h"

namespace seqkernels {

// A thread's elements of the state: hidden unit `unit` of batch row `row`, up to kPerThread.
struct Element {
  bool valid;
  int unit;       // within the block
  int row;        // within the slice
  int batch_row;  // of the whole batch
  int state_row;  // the same, counted over all parts
  int hidden;     // of the whole layer
  int length;     // steps of this row
};

struct Steps {
  int count;  // of the longest row of the slice
  int total;
  int part;
};

SK_DEVICE Element own_element(const SequenceArgs& a, const Block& b, int i) {
  Element e;
  const int index = b.thread + i * b.threads;
  e.row = index / a.plan.units;
  e.unit = index % a.plan.units;
  e.hidden = b.first_unit + e.unit;
  e.valid = e.row < b.rows && e.hidden < a.plan.hidden;
  e.batch_row = e.valid ? batch_row(a, b, e.row) : 0;
  e.state_row = b.part * a.plan.batch + e.batch_row;
  e.length = static_cast<int>(a.steps);
  if (e.valid && a.lengths != nullptr) {
    // Lengths lie on the device and nobody has checked them: beyond the last step is the last step.
    const int64_t length = a.lengths[e.batch_row];
    e.length = static_cast<int>(length < a.steps ? length : a.steps);
  }
  return e;
}

SK_DEVICE Steps own_steps(const SequenceArgs& a, const Block& b) {
  Steps s{static_cast<int>(a.steps), static_cast<int>(a.steps), b.part};
  if (a.lengths == nullptr) return s;
  s.count = 0;
  // Packed and ordered rows begin with the longest.
  const int rows = a.order != nullptr || a.offsets != nullptr ? 1 : b.rows;
  for (int n = 0; n < rows; ++n) {
    const int64_t length = a.lengths[batch_row(a, b, n)];
    if (length > s.count) s.count = length < s.total ? static_cast<int>(length) : s.total;
  }
  return s;
}

template <typename scalar_t>
SK_DEVICE float value_at(const void* p, int64_t i) {
  return p == nullptr ? 0.0f : sk::to_float(static_cast<const scalar_t*>(p)[i]);
}
template <typename scalar_t>
SK_DEVICE void put(void* p, int64_t i, float x) {
  if (p != nullptr) static_cast<scalar_t*>(p)[i] = sk::from_float<scalar_t>(x);
}

// Vectors `first` to `first` + `count` of `from`, of the block's units; zeros beyond the layer. A
// block barrier must follow.
template <typename scalar_t>
SK_DEVICE void load_vectors(const SequenceArgs& a, const Block& b, float* to, const void* from,
                            int first, int count) {
  const int units = a.plan.units, hidden = a.plan.hidden;
  for (int i = b.thread; i < count * units; i += b.threads) {
    const int unit = b.first_unit + i % units;
    const int64_t at = int64_t(first + i / units) * hidden + unit;
    to[i] = unit < hidden ? value_at<scalar_t>(from, at) : 0.0f;
  }
}

// Element of vector `vector` of the block's units, at the place where the product reads it.
template <typename M>
SK_DEVICE void stage(const Plan& p, char* values, int vector, const Element& e, float x) {
  const int index = vector * p.units + e.unit;
  char* chunk = values + (index / kChunk<M> * p.rows_padded + e.row) * kChunkBytes;
  reinterpret_cast<typename M::element*>(chunk)[index % kChunk<M>] = to_element<M>(x);
}

// The recurrent product for row `r` of this block's rows.
SK_DEVICE float summed(const Plan& p, const Phase& f, const char* shared, int r, int row) {
  const auto* partial = reinterpret_cast<const float*>(shared + p.partial_offset);
  float sum = 0.0f;
  for (int split = 0; split < f.k_splits; ++split) {
    sum += partial[(split * f.row_tiles * kTileRows + r) * p.partial_pitch + row];
  }
  return sum;
}

// bench/gpu/where.cu puts others here, to see what the exchange costs.
template <typename M>
struct ExchangerOf {
  using type = Exchanger;
};

template <typename Policy, typename M>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) persistent_kernel(const SequenceArgs a) {
  constexpr int kRegisters =
      register_tiles(M::kMath, Policy::kPhases, Policy::kBackward && Policy::kStacks);
  if (a.trial != 0) return;
  SK_SHARED(shared);
  const Plan& p = a.plan;
  const Block b = own_block(p);
  const Steps steps = own_steps(a, b);

  Product<M, Policy::kBackward, kRegisters> product[Policy::kPhases];
#pragma unroll
  for (int phase = 0; phase < Policy::kPhases; ++phase) {
    product[phase].load(a, b, p.phase[phase], a.weight_hh[b.part], shared);
    __syncthreads();
  }
  // Rows and chunks beyond the sizes stay zero.
  const int halves = p.exchange == Exchange::kCluster ? 2 : 1;
  for (int i = b.thread * 16; i < halves * p.input_bytes; i += b.threads * 16) {
    *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  // Stacked layers feed one another: upwards, and in the backward downwards.
  const bool stacked = Policy::kStacks && p.stacked != 0;
  const bool not_first = stacked && b.part > 0, not_last = stacked && b.part + 1 < p.parts;
  const bool fed = Policy::kBackward ? not_last : not_first;
  const bool feeds = Policy::kBackward ? not_first : not_last;
  Feed<M, Policy::kBackward> feed;
  if (fed) feed.begin(a, b, shared);
  Policy policy;
  policy.template begin<M>(a, b, shared);
  const auto fetch = [&](int s) {
    if (fed) feed.run(a, b, s, Policy::time(a, steps, s), shared);
    policy.fetch(a, steps, s, shared);
  };
  if (steps.count > 0) fetch(0);
  typename ExchangerOf<M>::type exchanger;
  exchanger.begin(a, b, shared);

  int round = 0;
  const int pieces = Policy::kBackward ? p.pieces : 1;
  // The product of what the last round has brought, or what it brings piece by piece.
  const auto multiply = [&](int phase) {
    const int bytes = p.phase[phase].in_width * p.units / kChunk<M> * p.rows_padded * kChunkBytes;
    for (int piece = 0; piece < pieces; ++piece) {
      const char* input = exchanger.input(round);
      if (pieces > 1) {
        input = exchanger.collect_piece(b, round - 1, bytes, piece);
        __syncthreads();
      }
      product[phase].run(p, b, input, piece);
    }
  };
  for (int s = 0; s < steps.count; ++s) {
#pragma unroll
    for (int phase = 0; phase < Policy::kPhases; ++phase) {
      const Phase& f = p.phase[phase];
      const int bytes = f.out_width * p.units / kChunk<M> * p.rows_padded * kChunkBytes;
      // The backward's first step has nothing behind it that was exchanged.
      const bool first = Policy::kBackward && s == 0 && phase == 0;
      if (!first) multiply(phase);
      __syncthreads();
      policy.template compute<M>(a, f, phase, first, shared, exchanger.outgoing(b, round, bytes));
      // The forward's last state is wanted by nobody.
      const bool last = !Policy::kBackward && s + 1 == steps.count && phase + 1 == Policy::kPhases;
      if (!last) {
        __syncthreads();
        exchanger.publish(b, round, bytes);
      }
      policy.store(a, steps, phase, s);
      if (phase + 1 == Policy::kPhases && s + 1 < steps.count) fetch(s + 1);
      if (!last) {
        if (pieces == 1) exchanger.collect(b, round, bytes);
        __syncthreads();
        ++round;
      }
      if (feeds && phase + 1 == Policy::kPhases) {
        if (last) __syncthreads();
        feed.announce(a, b, s);
      }
    }
  }
  if (Policy::kBackward && steps.count > 0) {
    multiply(0);
    __syncthreads();
  }
  policy.finish(a, steps, shared);
  exchanger.end();
}

// Launches, or with `a.trial` learns whether it could.
template <typename Policy, typename M>
int launch_policy(const SequenceArgs& a, void* stream) {
  const Plan& p = a.plan;
  sk::LaunchConfig config;
  config.grid = dim3(p.blocks * p.slices * p.parts);
  config.block = dim3(p.warps * 32);
  config.shared_bytes = p.shared_bytes;
  config.stream = stream;
  config.cluster = p.exchange == Exchange::kCluster ? p.blocks : 1;
  // A grid whose blocks wait for each other is refused where it cannot be resident as a whole.
  const bool waits = p.exchange == Exchange::kL2 || p.stacked != 0;
  config.cooperative = waits && a.not_cooperative == 0;
  config.trial = a.trial != 0;
  if (config.trial && waits && !config.cooperative) {
    int clusters = 0;
    const int error = sk::max_resident(persistent_kernel<Policy, M>, config, &clusters);
    if (error != 0) return error;
    if (unsigned(clusters) * config.cluster < config.grid.x)
      return cudaErrorCooperativeLaunchTooLarge;
  }
  return sk::launch(persistent_kernel<Policy, M>, config, a);
}

}  // namespace seqkernels
