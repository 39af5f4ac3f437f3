// The recurrent product of one block: gates [row tile, batch row] = weights x exchanged values.
//
// Everything lies in chunks of 16 bytes along the summed dimension k. Inputs in shared memory are
// [chunk][batch row], weight tiles [2 chunks][16 rows]; both are read by ldmatrix without bank
// conflicts, since 8 neighbouring rows of a chunk fill all banks. A warp owns one tile of 16 rows
// and a range of k tiles; its partial sums go to shared memory, where the pointwise part adds them.
#pragma once
#include "cuda/launch.h"
#include "cuda/ptx/device.h"

namespace seqkernels {

// Number formats. `scalar` is what tensors hold, `element` what the product reads.
template <Math math>
struct Format {
  static constexpr Math kMath = math;
  using scalar =
      std::conditional_t<math == Math::kHalf, __half,
                         std::conditional_t<math == Math::kBFloat16, __nv_bfloat16, float>>;
  using element = std::conditional_t<math == Math::kTf32, uint32_t, scalar>;
  // Not of strict float32, whose products are multiply-adds.
  SK_DEVICE static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (math == Math::kTf32) {
      sk::mma_m16n8k8_tf32(d, a, b);
    } else {
      sk::mma_m16n8k16<element>(d, a, b);
    }
  }
};

template <typename M>
SK_DEVICE typename M::element to_element(float x) {
  if constexpr (M::kMath == Math::kTf32) {
    return sk::to_tf32(x);
  } else {
    return sk::from_float<typename M::element>(x);
  }
}
template <typename M>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(typename M::element));

// What all threads of a block know of their place.
struct Block {
  int part;             // which recurrence of the launch
  int group, own;       // slice of the batch, counted over all parts; rank in the group
  int first_row, rows;  // places in the order of the batch that the slice takes
  int first_unit;
  int thread, threads, warp, lane;
};
SK_DEVICE Block own_block(const Plan& p) {
  Block b;
  b.group = blockIdx.x / p.blocks;
  b.own = blockIdx.x % p.blocks;
  b.part = b.group / p.slices;
  b.first_row = b.group % p.slices * p.rows;
  b.rows = p.batch - b.first_row < p.rows ? p.batch - b.first_row : p.rows;
  b.first_unit = b.own * p.units;
  b.thread = threadIdx.x;
  b.threads = blockDim.x;
  b.warp = sk::warp_id();
  b.lane = sk::lane_id();
  return b;
}

// The batch row at place `row` of the slice.
SK_DEVICE int batch_row(const SequenceArgs& a, const Block& b, int row) {
  const int place = b.first_row + row;
  return a.order != nullptr ? static_cast<int>(a.order[place]) : place;
}

SK_DEVICE bool reversed(const SequenceArgs& a, int part) { return (a.reverse >> part & 1) != 0; }

// The row of a tensor of steps that holds batch row `row` of step t.
SK_DEVICE int64_t sequence_row(const SequenceArgs& a, int part, int t, int row) {
  const int64_t at = a.offsets != nullptr ? a.offsets[t] + row : int64_t(t) * a.plan.batch + row;
  return at * a.row_stride + part * a.part_stride;
}

// Chunk `chunk` of row `row` of the product's weights. Forward: row is a gate of an own unit, k a
// unit of the group. Backward: row is an own unit, k runs over runs of `span` units, their gates
// and their units; a run is a block, or in the feed of a stacked layer the whole group.
template <typename M, bool kBackward>
SK_DEVICE uint4 weight_chunk(const SequenceArgs& a, const Phase& f, const void* weight,
                             int first_unit, int row, int chunk) {
  using scalar_t = typename M::scalar;
  const int units = a.plan.units, hidden = a.plan.hidden, k = chunk * kChunk<M>;
  const int block_row = row / units, own_unit = first_unit + row % units;
  int gate = f.gate + block_row, unit = k;
  bool valid = block_row < f.row_gates && own_unit < hidden;
  if constexpr (kBackward) {
    // span is a multiple of a chunk: a chunk never leaves its gate. Runs beyond the last begin
    // beyond the hidden size.
    const int width = f.in_width * f.span, run = k / width, rest = k % width;
    gate = f.gate + rest / f.span;
    unit = run * f.span + rest % f.span;
  }
  const auto* weights = static_cast<const scalar_t*>(weight);
  const int64_t row_pitch = hidden, gate_row = int64_t(gate) * hidden;
  alignas(16) typename M::element values[kChunk<M>];
#pragma unroll
  for (int e = 0; e < kChunk<M>; ++e) {
    float x = 0.0f;
    if (valid && unit + e < hidden) {
      x = sk::to_float(kBackward ? weights[(gate_row + unit + e) * row_pitch + own_unit]
                                 : weights[(gate_row + own_unit) * row_pitch + unit + e]);
    }
    values[e] = to_element<M>(x);
  }
  uint4 bits;
  memcpy(&bits, values, sizeof(bits));
  return bits;
}

template <typename M, bool kBackward, int kRegisters>
class Product {
 public:
  // All warps. `partial` lends each warp room to sort its register tiles.
  SK_DEVICE void load(const SequenceArgs& a, const Block& b, const Phase& f, const void* weight,
                      char* shared) {
    tile_ = b.warp % f.row_tiles;
    const int split = b.warp / f.row_tiles;
    first_ = split * f.per_piece;
    const int left = f.piece_tiles - first_;
    active_ = split < f.k_splits;
    count_ = !active_ ? 0 : left < 0 ? 0 : left < f.per_piece ? left : f.per_piece;
    streamed_ = shared + f.weight_offset + b.warp * f.streamed * kTileBytes;
    partial_ = reinterpret_cast<float*>(shared + a.plan.partial_offset) +
               b.warp * kTileRows * a.plan.partial_pitch;
    char* room = reinterpret_cast<char*>(partial_);
    for (int i = 0; i < f.pieces * count_; ++i) {
      const int k_tile = i / count_ * f.piece_tiles + first_ + i % count_;
      // Lane l brings chunk l / 16 of row l % 16.
      const int row = tile_ * kTileRows + b.lane % 16, chunk = 2 * k_tile + b.lane / 16;
      const uint4 own = weight_chunk<M, kBackward>(a, f, weight, b.first_unit, row, chunk);
      uint32_t held[4];
      if (i >= kRegisters) {
        *reinterpret_cast<uint4*>(streamed_ + (i - kRegisters) * kTileBytes + b.lane * 16) = own;
        continue;
      } else if constexpr (M::kMath == Math::kFloat32) {
        memcpy(held, &own, sizeof(held));
      } else {
        *reinterpret_cast<uint4*>(room + b.lane * 16) = own;
        __syncwarp();
        sk::ldmatrix<4>(held, room + b.lane * 16);
        __syncwarp();
      }
      // A register array takes constant indices alone.
#pragma unroll
      for (int j = 0; j < kRegisters; ++j) {
        if (i == j) memcpy(held_[j], held, sizeof(held));
      }
    }
  }

  // Partial sums of this warp's rows for every batch row of the slice, over one piece of the input;
  // all but the first are added to what is there.
  SK_DEVICE void run(const Plan& p, const Block& b, const char* input, int piece = 0) const {
    if (!active_) return;
    if constexpr (M::kMath == Math::kFloat32) {
      // Few rows are not padded.
      if (p.rows == 1) return run_fma<1>(p, b, input, piece, 0);
      if (p.rows <= 4) return run_fma<4>(p, b, input, piece, 0);
      for (int n = 0; n < p.rows_padded; n += 8) run_fma<8>(p, b, input, piece, n);
    } else {
      for (int n = 0; n < p.rows_padded; n += 16) run_mma(p, b, input, piece, n);
    }
  }

 private:
  // The own tiles of a piece; a forward has one.
  SK_DEVICE int begin(int piece) const { return kBackward ? piece * count_ : 0; }
  SK_DEVICE static void add(float* partial, float sum, int piece) {
    *partial = kBackward && piece > 0 ? *partial + sum : sum;
  }

  SK_DEVICE void run_mma(const Plan& p, const Block& b, const char* input, int piece, int n) const {
    const int begin_tile = begin(piece), end_tile = begin_tile + count_;
    const bool two = n + 8 < p.rows_padded;
    // Two sums for each column tile halve the chain of dependent products.
    float sum[2][2][4] = {};
    const int column = n + b.lane % 8 + (two ? b.lane / 16 * 8 : 0), half = b.lane / 8 % 2;
    const int pitch = p.rows_padded * kChunkBytes;
    const char* from = input + (2 * (first_ - begin_tile) + half) * pitch + column * kChunkBytes;
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      if (i >= begin_tile && i < end_tile) {
        step(sum[i % 2], held_[i], from + i * 2 * pitch, two);
      }
    }
    for (int i = begin_tile < kRegisters ? kRegisters : begin_tile; i < end_tile; ++i) {
      uint32_t weights[4];
      sk::ldmatrix<4>(weights, streamed_ + (i - kRegisters) * kTileBytes + b.lane * 16);
      step(sum[0], weights, from + i * 2 * pitch, two);
    }
    const int row = b.lane / 4, quad = b.lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (c == 1 && !two) break;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        add(&partial_[(row + e / 2 * 8) * p.partial_pitch + n + c * 8 + quad + e % 2],
            sum[0][c][e] + sum[1][c][e], piece);
      }
    }
  }
  SK_DEVICE static void step(float (&sum)[2][4], const uint32_t (&weights)[4], const char* from,
                             bool two) {
    uint32_t inputs[4];
    sk::ldmatrix<4>(inputs, from);
    M::mma(sum[0], weights, {inputs[0], inputs[1]});
    if (two) M::mma(sum[1], weights, {inputs[2], inputs[3]});
  }

  // Strict float32: a lane owns a row and one chunk of every tile, as it brought them.
  template <int kColumns>
  SK_DEVICE void run_fma(const Plan& p, const Block& b, const char* input, int piece, int n) const {
    const int begin_tile = begin(piece), end_tile = begin_tile + count_;
    const int row = b.lane % 16, half = b.lane / 16, pitch = p.rows_padded * kChunkBytes;
    const char* from = input + (2 * (first_ - begin_tile) + half) * pitch + n * kChunkBytes;
    float sum[kColumns] = {};
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      if (i < begin_tile || i >= end_tile) continue;
      float4 weights;
      memcpy(&weights, held_[i], sizeof(weights));
      dot(sum, weights, from + i * 2 * pitch);
    }
    for (int i = begin_tile < kRegisters ? kRegisters : begin_tile; i < end_tile; ++i) {
      const char* weights = streamed_ + (i - kRegisters) * kTileBytes + b.lane * 16;
      dot(sum, *reinterpret_cast<const float4*>(weights), from + i * 2 * pitch);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      sum[c] += __shfl_xor_sync(~0u, sum[c], 16);
      if (half == 0) add(&partial_[row * p.partial_pitch + n + c], sum[c], piece);
    }
  }
  template <int kColumns>
  SK_DEVICE static void dot(float (&sum)[kColumns], float4 w, const char* from) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float4 x = *reinterpret_cast<const float4*>(from + c * kChunkBytes);
      sum[c] = sk::fma(w.w, x.w, sk::fma(w.z, x.z, sk::fma(w.y, x.y, sk::fma(w.x, x.x, sum[c]))));
    }
  }

  uint32_t held_[kRegisters > 0 ? kRegisters : 1][4];
  int tile_, first_, count_;
  bool active_;
  char* streamed_;
  float* partial_;
};

}  // namespace seqkernels
