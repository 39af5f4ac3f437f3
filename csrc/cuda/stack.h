// What joins the stacked layers of one launch: a layer above the first multiplies what the layer
// below has put out at the same step with its own input weights.
//
// Every block counts the steps whose output it has written. A layer waits for the layer below
// alone, never for one above, and reads the output tensor itself: nothing is written twice, so
// nobody has to wait until it has been read.
#pragma once
#include "product.h"

namespace seqkernels {

template <typename M>
class LayerInput {
 public:
  // All threads of a layer above the first.
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    const Plan& p = a.plan;
    product_.load(a, b, p.below, a.weight_ih[b.part], shared);
    // Rows and chunks beyond the sizes stay zero.
    const int bytes = 2 * p.below.k_tiles * p.rows_padded * kChunkBytes;
    for (int i = b.thread * 16; i < bytes; i += b.threads * 16) {
      *reinterpret_cast<uint4*>(shared + p.below_offset + i) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
  }

  // The input product of step s, which is time t, as partial sums. Ends with a block barrier; the
  // partial sums of the step before must have been read.
  SK_DEVICE void run(const SequenceArgs& a, const Block& b, int s, int t, char* shared) const {
    const Plan& p = a.plan;
    const uint32_t* flags = flags_of(a, b.group - p.slices);
    for (int peer = b.thread; peer < p.blocks; peer += b.threads) {
      sk::wait_at_least(flags + peer, uint32_t(s) + 1);
    }
    __syncthreads();
    char* input = shared + p.below_offset;
    const int chunks = (p.hidden + kChunk<M> - 1) / kChunk<M>;
    for (int i = b.thread; i < chunks * b.rows; i += b.threads) {
      const int row = i % b.rows, chunk = i / b.rows, n = batch_row(a, b, row);
      // A packed row that has ended has no place.
      if (a.offsets != nullptr && t >= a.lengths[n]) continue;
      const int64_t at = sequence_row(a, b.part - 1, t, n) * p.hidden + chunk * kChunk<M>;
      const uint4 bits = elements(static_cast<const scalar*>(a.output) + at, p.hidden, chunk);
      *reinterpret_cast<uint4*>(input + (chunk * p.rows_padded + row) * kChunkBytes) = bits;
    }
    __syncthreads();
    product_.run(p, b, input);
    __syncthreads();
  }

  // Step s has been written: after a block barrier, for the layer above.
  SK_DEVICE static void announce(const SequenceArgs& a, const Block& b, int s) {
    if (b.thread == 0) sk::store_release(flags_of(a, b.group) + b.own, uint32_t(s) + 1);
  }

 private:
  using scalar = typename M::scalar;

  SK_DEVICE static uint32_t* flags_of(const SequenceArgs& a, int group) {
    char* flags = static_cast<char*>(a.exchange) + a.plan.flags_offset;
    return reinterpret_cast<uint32_t*>(flags) + group * a.plan.blocks;
  }
  // Chunk `chunk` of a row, as the product reads it. Written by other blocks during this launch, so
  // it is read where they wrote it, in the L2 cache.
  SK_DEVICE static uint4 elements(const scalar* from, int hidden, int chunk) {
    alignas(16) scalar values[kChunk<M>];
    if (hidden % kChunk<M> == 0) {
      const uint4 loaded = sk::load_l2(reinterpret_cast<const uint4*>(from));
      memcpy(values, &loaded, sizeof(loaded));
    } else {
#pragma unroll
      for (int e = 0; e < kChunk<M>; ++e) {
        const bool inside = chunk * kChunk<M> + e < hidden;
        values[e] = inside ? sk::load_l2(from + e) : sk::from_float<scalar>(0.0f);
      }
    }
    alignas(16) typename M::element converted[kChunk<M>];
#pragma unroll
    for (int e = 0; e < kChunk<M>; ++e) converted[e] = to_element<M>(sk::to_float(values[e]));
    uint4 bits;
    memcpy(&bits, converted, sizeof(bits));
    return bits;
  }

  Product<M, false, 0> product_;
};

}  // namespace seqkernels
