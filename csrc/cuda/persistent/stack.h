// What joins the stacked layers of one launch: a layer multiplies what its neighbour has put out at
// the same step. Forward, a layer above the first takes the output of the layer below times its own
// input weights; backward, a layer below the last takes the gate gradients of the layer above times
// that layer's input weights, transposed, as the gradient of its output.
//
// Every block counts the steps whose results it has written. A layer waits for the neighbour that
// feeds it alone, never for the one it feeds, and reads the results' tensor itself: nothing is
// written twice, so nobody has to wait until it has been read.
#pragma once
#include "cuda/persistent/product.h"

namespace seqkernels {

template <typename M, bool kBackward>
class Feed {
 public:
  // All threads of a layer that is fed.
  SK_DEVICE void begin(const SequenceArgs& a, const Block& b, char* shared) {
    const Plan& p = a.plan;
    product_.load(a, b, p.feed, a.weight_ih[kBackward ? b.part + 1 : b.part], shared);
    // Rows and chunks beyond the sizes stay zero.
    const int bytes = 2 * p.feed.piece_tiles * p.rows_padded * kChunkBytes;
    for (int i = b.thread * 16; i < bytes; i += b.threads * 16) {
      *reinterpret_cast<uint4*>(shared + p.feed_offset + i) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
  }

  // The product of step s, which is time t, as partial sums. Ends with a block barrier; the partial
  // sums of the step before must have been read.
  SK_DEVICE void run(const SequenceArgs& a, const Block& b, int s, int t, char* shared) const {
    const Plan& p = a.plan;
    const uint32_t* flags = flags_of(a, b.group + (kBackward ? p.slices : -p.slices));
    for (int peer = b.thread; peer < p.blocks; peer += b.threads) {
      sk::wait_at_least(flags + peer, uint32_t(s) + 1, peer);
    }
    __syncthreads();
    char* input = shared + p.feed_offset;
    const int pieces = kBackward ? p.feed.pieces : 1;
    for (int piece = 0; piece < pieces; ++piece) {
      if constexpr (kBackward) {
        take_gradients(a, b, t, piece, input);
      } else {
        take_output(a, b, t, input);
      }
      __syncthreads();
      product_.run(p, b, input, piece);
      __syncthreads();
    }
  }

  // Step s has been written: after a block barrier, for the layer that is fed.
  SK_DEVICE static void announce(const SequenceArgs& a, const Block& b, int s) {
    if (b.thread == 0) sk::store_release(flags_of(a, b.group) + b.own, uint32_t(s) + 1);
  }

 private:
  using scalar = typename M::scalar;

  SK_DEVICE static uint32_t* flags_of(const SequenceArgs& a, int group) {
    char* flags = static_cast<char*>(a.exchange) + a.plan.flags_offset;
    return reinterpret_cast<uint32_t*>(flags) + group * a.plan.blocks;
  }

  SK_DEVICE static void take_output(const SequenceArgs& a, const Block& b, int t, char* input) {
    const Plan& p = a.plan;
    const int chunks = (p.hidden + kChunk<M> - 1) / kChunk<M>;
    for (int i = b.thread; i < chunks * b.rows; i += b.threads) {
      const int row = i % b.rows, chunk = i / b.rows, n = batch_row(a, b, row);
      // A packed row that has ended has no place.
      if (a.offsets != nullptr && t >= a.lengths[n]) continue;
      const int64_t at = sequence_row(a, b.part - 1, t, n) * p.hidden + chunk * kChunk<M>;
      const uint4 bits = elements(static_cast<const scalar*>(a.output) + at, p.hidden,
                                  p.hidden - chunk * kChunk<M>);
      *reinterpret_cast<uint4*>(input + (chunk * p.rows_padded + row) * kChunkBytes) = bits;
    }
  }

  // Gate after gate, each of `span` values, of which those beyond the hidden size are zero.
  SK_DEVICE static void take_gradients(const SequenceArgs& a, const Block& b, int t, int piece,
                                       char* input) {
    const Plan& p = a.plan;
    const Phase& f = p.feed;
    const int chunks = 2 * f.piece_tiles, first = piece * chunks, per_gate = f.span / kChunk<M>;
    for (int i = b.thread; i < chunks * b.rows; i += kFlight * b.threads) {
      // All loads of a batch are on their way before the first is stored.
      uint4 bits[kFlight];
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const int item = i + k * b.threads;
        bits[k] = make_uint4(0, 0, 0, 0);
        if (item >= chunks * b.rows) continue;
        const int chunk = first + item / b.rows, n = batch_row(a, b, item % b.rows);
        const int gate = chunk / per_gate, unit = chunk % per_gate * kChunk<M>;
        // A packed row that has ended has no place.
        if (gate >= f.in_width || unit >= p.hidden) continue;
        if (a.offsets != nullptr && t >= a.lengths[n]) continue;
        const int64_t at = (sequence_row(a, b.part + 1, t, n) * f.in_width + gate) * p.hidden;
        bits[k] = elements(static_cast<const scalar*>(a.grad_gates_x) + at + unit, p.hidden,
                           p.hidden - unit);
      }
#pragma unroll
      for (int k = 0; k < kFlight; ++k) {
        const int item = i + k * b.threads;
        if (item >= chunks * b.rows) continue;
        const int row = item % b.rows, chunk = item / b.rows;
        *reinterpret_cast<uint4*>(input + (chunk * p.rows_padded + row) * kChunkBytes) = bits[k];
      }
    }
  }

  // A chunk, as the product reads it, from a row of `hidden` values of which `left` remain. Written
  // by other blocks during this launch, so it is read where they wrote it, in the L2 cache.
  SK_DEVICE static uint4 elements(const scalar* from, int hidden, int left) {
    alignas(16) scalar values[kChunk<M>];
    if (hidden % kChunk<M> == 0) {
      const uint4 loaded = sk::load_l2(reinterpret_cast<const uint4*>(from));
      memcpy(values, &loaded, sizeof(loaded));
    } else {
#pragma unroll
      for (int e = 0; e < kChunk<M>; ++e) {
        values[e] = e < left ? sk::load_l2(from + e) : sk::from_float<scalar>(0.0f);
      }
    }
    alignas(16) typename M::element converted[kChunk<M>];
#pragma unroll
    for (int e = 0; e < kChunk<M>; ++e) converted[e] = to_element<M>(sk::to_float(values[e]));
    uint4 bits;
    memcpy(&bits, converted, sizeof(bits));
    return bits;
  }

  static constexpr int kFlight = 4;
  Product<M, kBackward, 0> product_;
};

}  // namespace seqkernels
