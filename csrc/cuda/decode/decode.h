// Greedy decoding in one launch: embedding, stacked cells, projection, arg-max and feedback.
// A block owns some hidden units of every layer with all their gates, and some words of the
// vocabulary; a warp computes one unit or four words at a time, its lanes along the depth.
// All weights stay in shared memory, cell states too; h goes through global memory, in float32.
// There is one grid barrier after every layer and one after the projection, after which every block
// makes the same choice by itself. The suite `decode` of bench/results compares it with step loops.
//
// Limitations:
//   at most 8 layers and 64 rows; no float64; weights that fit on chip (decode_plan says why not);
//   products are plain multiply-adds, no tensor cores: it is made for few rows;
//   cells of one stage without parameters;
//   a start token outside the embedding is read as the nearest one inside.
#pragma once
#include "cuda/decode/launch.h"
#include "cuda/stepwise/elements.h"

namespace seqkernels {

constexpr int kWarps = kDecodeThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

// The block's shared memory, in the order of decode_shared_bytes.
template <typename scalar_t>
struct Shared {
  scalar_t* weights;
  float *x, *h;       // [tile, pitch] inputs of the rows of a tile
  float* c;           // [L, S-1, units, N] all states but h
  float *best, *sum;  // [warps, N]
  int* word;
  int *rows, *token;  // [N] rows that still run; the last token of every row
  int* running;
};

template <typename scalar_t>
SK_DEVICE Shared<scalar_t> layout(char* base, const DecodeSizes& s, const DecodePlan& p) {
  const int64_t wide = decode_pitch(s.embedding), own = decode_pitch(s.hidden);
  const int64_t weights = p.units * s.gates * (wide + own) +
                          (s.layers - 1) * p.units * s.gates * 2 * own + p.words * own;
  Shared<scalar_t> m;
  m.weights = reinterpret_cast<scalar_t*>(base);
  m.x = reinterpret_cast<float*>(base + (weights * sizeof(scalar_t) + 15) / 16 * 16);
  m.h = m.x + p.tile * (wide > own ? wide : own);
  m.c = m.h + p.tile * own;
  m.best = m.c + int64_t(s.states - 1) * s.layers * p.units * s.rows;
  m.sum = m.best + kWarps * s.rows;
  m.word = reinterpret_cast<int*>(m.sum + kWarps * s.rows);
  m.rows = m.word + kWarps * s.rows;
  m.token = m.rows + s.rows;
  m.running = m.token + s.rows;
  return m;
}

// Copies `count` rows of weights to rows of decode_pitch(depth), zeros at the end; returns what
// follows them. Row i of the copy is row first + i / gates + i % gates * stride of the source.
template <typename scalar_t>
SK_DEVICE scalar_t* keep(scalar_t* to, const void* weight, int depth, int first, int count,
                         int gates, int stride) {
  const int pitch = decode_pitch(depth);
  for (int64_t i = threadIdx.x; i < int64_t(count) * pitch; i += kDecodeThreads) {
    const int row = i / pitch, k = i % pitch;
    const int64_t from = first + row / gates + int64_t(row % gates) * stride;
    to[i] =
        k < depth ? static_cast<const scalar_t*>(weight)[from * depth + k] : narrow<scalar_t>(0.0f);
  }
  return to + int64_t(count) * pitch;
}

// sums[g][r] += the lane's share of weight row g times input row r. Products of the rows in kApart
// go to sums of their own, behind the others.
template <int kRowsOfWeights, int kTile, unsigned kApart, typename scalar_t, int kSums>
SK_DEVICE void multiply(float (&sums)[kSums][kTile], const scalar_t* weights, const float* input,
                        int pitch, int input_pitch) {
  for (int k = sk::lane_id() * 4; k < pitch; k += 128) {
    float x[kTile][4];
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const auto pack = *reinterpret_cast<const Pack<float, 4>*>(input + r * input_pitch + k);
#pragma unroll
      for (int v = 0; v < 4; ++v) x[r][v] = pack.lane[v];
    }
#pragma unroll
    for (int g = 0; g < kRowsOfWeights; ++g) {
      const int to = in_set(kApart, g) ? kRowsOfWeights + place_in_set(kApart, g) : g;
      const auto pack = *reinterpret_cast<const Pack<scalar_t, 4>*>(weights + g * pitch + k);
#pragma unroll
      for (int v = 0; v < 4; ++v) {
        const float w = widen<float>(pack.lane[v]);
#pragma unroll
        for (int r = 0; r < kTile; ++r) sums[to][r] = sk::fma(w, x[r][v], sums[to][r]);
      }
    }
  }
}

// The sums over all lanes, of the row that this lane stands for (lanes below kTile).
template <int kSums, int kTile>
SK_DEVICE void gather(float (&own)[kSums], const float (&sums)[kSums][kTile]) {
#pragma unroll
  for (int g = 0; g < kSums; ++g) {
    own[g] = 0.0f;
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const float total = sk::warp_sum(sums[g][r]);
      if (sk::lane_id() == r) own[g] = total;
    }
  }
}

// How many of `count` this block has where `left` are left from its first on.
SK_DEVICE int share(int count, int left) { return left < 0 ? 0 : left < count ? left : count; }

template <typename scalar_t>
SK_DEVICE float element(const void* p, int64_t i) {
  return p == nullptr ? 0.0f : widen<float>(static_cast<const scalar_t*>(p)[i]);
}

// As torch.argmax: the first of equals, and a NaN above everything.
SK_DEVICE bool beats(float x, int at, float best, int best_at) {
  if (x != x || best != best) return x != x && (best == best || at < best_at);
  return x > best || (x == best && at < best_at);
}

// One more logit in the running maximum and sum of exponentials.
SK_DEVICE void include(float x, int at, float* best, int* word, float* sum, bool scores) {
  const float before = *best;
  if (beats(x, at, *best, *word)) *best = x, *word = at;
  if (!scores || *best == -INFINITY) return;
  const float kept = *sum == 0.0f ? 0.0f : *sum * exp_(before - *best);
  *sum = kept + exp_(x - *best);
}

template <typename C, typename scalar_t, int kTile>
__global__ void __launch_bounds__(kDecodeThreads, 1) decode_kernel(DecodeArgs a) {
  // A gate whose gradients differ takes its two products one by one.
  constexpr int kGates = C::kGates, kSums = kGates + size_of_set(C::kSeparate);
  constexpr int kOthers = kOtherStates<C>;
  SK_SHARED(base);
  const DecodeSizes& s = a.sizes;
  const Shared<scalar_t> m = layout<scalar_t>(base, s, a.plan);
  const int wide = decode_pitch(s.embedding), own = decode_pitch(s.hidden);
  const int64_t layer_states = int64_t(s.rows) * s.hidden;
  const int first_unit = blockIdx.x * a.plan.units, first_word = blockIdx.x * a.plan.words;
  const int units = share(a.plan.units, s.hidden - first_unit);
  const int words = share(a.plan.words, s.vocabulary - first_word);

  scalar_t* next = m.weights;
  for (int l = 0; l < s.layers; ++l) {
    scalar_t* const begin = next;
    const int depth = l == 0 ? s.embedding : s.hidden;
    next = keep(next, a.weight_ih[l], depth, first_unit, units * kGates, kGates, s.hidden);
    next = keep(next, a.weight_hh[l], s.hidden, first_unit, units * kGates, kGates, s.hidden);
    // A last block with fewer units leaves the places of the others empty.
    next = begin + int64_t(a.plan.units) * kGates * (decode_pitch(depth) + own);
  }
  const scalar_t* const projection = next;
  keep(next, a.weight_out, s.hidden, first_word, words, 1, 0);
  if (kOthers > 0)
    for (int i = threadIdx.x; i < s.layers * kOthers * units * s.rows; i += kDecodeThreads) {
      const int row = i % s.rows, unit = i / s.rows % units, state = i / s.rows / units;
      const int64_t from = int64_t(state / room(kOthers)) * s.rows + row;
      m.c[(state * a.plan.units + unit) * s.rows + row] = element<scalar_t>(
          a.c_0, (from * kOthers + state % room(kOthers)) * s.hidden + first_unit + unit);
    }
  for (int n = threadIdx.x; n < s.rows; n += kDecodeThreads) {
    const int64_t start = a.start[n];
    m.rows[n] = n;
    m.token[n] = start < 0 ? 0 : start < a.tokens ? start : a.tokens - 1;
  }
  if (threadIdx.x == 0) *m.running = s.rows;
  __syncthreads();

  unsigned round = 0;
  for (int64_t step = 0; step < a.max_length; ++step) {
    const float* before = a.h + (step & 1) * s.layers * layer_states;
    float* after = a.h + (1 - (step & 1)) * s.layers * layer_states;
    const int running = *m.running;
    const scalar_t* weights = m.weights;
    for (int l = 0; l < s.layers; ++l) {
      const int depth = l == 0 ? s.embedding : s.hidden, pitch = l == 0 ? wide : own;
      const scalar_t* const weights_hh = weights + int64_t(units) * kGates * pitch;
      for (int tile = 0; tile < running; tile += kTile) {
        __syncthreads();
        for (int i = threadIdx.x; i < kTile * pitch; i += kDecodeThreads) {
          const int r = i / pitch, k = i % pitch;
          float x = 0.0f;
          if (tile + r < running && k < depth) {
            const int row = m.rows[tile + r];
            x = l == 0 ? element<scalar_t>(a.embedding, int64_t(m.token[row]) * depth + k)
                       : sk::load_l2(after + (l - 1) * layer_states + int64_t(row) * s.hidden + k);
          }
          m.x[i] = x;
        }
        for (int i = threadIdx.x; i < kTile * own; i += kDecodeThreads) {
          const int r = i / own, k = i % own;
          m.h[i] = tile + r < running && k < s.hidden
                       ? sk::load_l2(before + l * layer_states +
                                     int64_t(m.rows[tile + r]) * s.hidden + k)
                       : 0.0f;
        }
        __syncthreads();
        for (int u = sk::warp_id(); u < units; u += kWarps) {
          float sums[kSums][kTile] = {}, total[kSums];
          multiply<kGates, kTile, 0>(sums, weights + int64_t(u) * kGates * pitch, m.x, pitch,
                                     pitch);
          multiply<kGates, kTile, C::kSeparate>(sums, weights_hh + int64_t(u) * kGates * own, m.h,
                                                own, own);
          gather(total, sums);
          const int r = sk::lane_id();
          if (r < kTile && tile + r < running) {
            const int unit = first_unit + u, row = m.rows[tile + r];
            Step<C, float> v;
#pragma unroll
            for (int g = 0; g < kGates; ++g) {
              const int apart = in_set(C::kSeparate, g) ? place_in_set(C::kSeparate, g) : -1;
              v.gates_x[g] = total[g] + element<scalar_t>(a.bias_ih[l], g * s.hidden + unit);
              v.gates_h[g] = (apart < 0 ? 0.0f : total[kGates + apart]) +
                             element<scalar_t>(a.bias_hh[l], g * s.hidden + unit);
            }
            float* const c = m.c + (int64_t(l) * kOthers * a.plan.units + u) * s.rows + row;
            const int next_state = a.plan.units * s.rows;
            v.state[0] = m.h[r * own + unit];
#pragma unroll
            for (int j = 1; j < C::kStates; ++j) v.state[j] = c[(j - 1) * next_state];
            C::template forward<0>(v);
            const int64_t at = l * layer_states + int64_t(row) * s.hidden + unit;
            after[at] = v.new_state[0];
            static_cast<scalar_t*>(a.h_n)[at] = narrow<scalar_t>(v.new_state[0]);
            const int64_t state_row = int64_t(l) * s.rows + row;
#pragma unroll
            for (int j = 1; j < C::kStates; ++j) {
              c[(j - 1) * next_state] = v.new_state[j];
              static_cast<scalar_t*>(a.c_n)[(state_row * kOthers + j - 1) * s.hidden + unit] =
                  narrow<scalar_t>(v.new_state[j]);
            }
          }
        }
      }
      weights += int64_t(a.plan.units) * kGates * (pitch + own);
      sk::grid_barrier(a.counter, gridDim.x, ++round);
    }

    // The block's words: each warp takes four at a time, and lane r keeps the best of row r.
    for (int tile = 0; tile < running; tile += kTile) {
      __syncthreads();
      for (int i = threadIdx.x; i < kTile * own; i += kDecodeThreads) {
        const int r = i / own, k = i % own;
        m.h[i] = tile + r < running && k < s.hidden
                     ? sk::load_l2(after + (s.layers - 1) * layer_states +
                                   int64_t(m.rows[tile + r]) * s.hidden + k)
                     : 0.0f;
      }
      __syncthreads();
      float best = -INFINITY, sum = 0.0f;
      int word = first_word;
      for (int w = sk::warp_id() * 4; w < words; w += kWarps * 4) {
        float sums[4][kTile] = {}, logits[4];
        if (w + 4 <= words) {
          multiply<4, kTile, 0>(sums, projection + int64_t(w) * own, m.h, own, own);
          gather(logits, sums);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (w + j >= words) break;
            float one[1][kTile] = {}, logit[1];
            multiply<1, kTile, 0>(one, projection + int64_t(w + j) * own, m.h, own, own);
            gather(logit, one);
            logits[j] = logit[0];
          }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = first_word + w + j;
          if (w + j < words)
            include(logits[j] + element<scalar_t>(a.bias_out, at), at, &best, &word, &sum,
                    a.scores);
        }
      }
      const int r = sk::lane_id();
      if (r < kTile && tile + r < running) {
        const int i = sk::warp_id() * s.rows + tile + r;
        m.best[i] = best, m.sum[i] = sum, m.word[i] = word;
      }
    }
    __syncthreads();
    for (int n = threadIdx.x; n < running; n += kDecodeThreads) {
      float best = m.best[n], sum = m.sum[n];
      int word = m.word[n];
      for (int w = 1; w < kWarps; ++w) {
        const float other = m.best[w * s.rows + n], share = m.sum[w * s.rows + n], old = best;
        if (beats(other, m.word[w * s.rows + n], best, word)) {
          best = other, word = m.word[w * s.rows + n];
        }
        if (!a.scores) continue;
        const float kept = sum == 0.0f ? 0.0f : sum * exp_(old - best);
        sum = kept + (share == 0.0f ? 0.0f : share * exp_(other - best));
      }
      const int64_t i = int64_t(blockIdx.x) * s.rows + n;
      a.best[i] = best, a.sum[i] = sum, a.word[i] = word;
    }
    sk::grid_barrier(a.counter, gridDim.x, ++round);

    // Every block chooses for itself, a warp for each row, and comes to the same tokens.
    for (int n = sk::warp_id(); n < running; n += kWarps) {
      float best = -INFINITY;
      int word = s.vocabulary;
      for (int b = sk::lane_id(); b < int(gridDim.x); b += 32) {
        const float other = sk::load_l2(a.best + int64_t(b) * s.rows + n);
        const int at = sk::load_l2(a.word + int64_t(b) * s.rows + n);
        if (beats(other, at, best, word)) best = other, word = at;
      }
      for (int o = 16; o; o >>= 1) {
        const float other = __shfl_xor_sync(kAll, best, o);
        const int at = __shfl_xor_sync(kAll, word, o);
        if (beats(other, at, best, word)) best = other, word = at;
      }
      float sum = 0.0f;
      if (a.scores) {
        for (int b = sk::lane_id(); b < int(gridDim.x); b += 32) {
          const float share = sk::load_l2(a.sum + int64_t(b) * s.rows + n);
          if (share != 0.0f)
            sum += share * exp_(sk::load_l2(a.best + int64_t(b) * s.rows + n) - best);
        }
        sum = sk::warp_sum(sum);
      }
      if (sk::lane_id() == 0) {
        const int row = m.rows[n];
        m.token[row] = word;
        if (blockIdx.x == 0) {
          a.chosen[row * a.max_length + step] = word;
          a.lengths[row] = step + 1;
          // Without a finite largest logit there is no probability: NaN, as log_softmax has it.
          if (a.scores) a.log_probs[row] += sum > 0.0f ? -std::log(sum) : best - best;
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int kept = 0;
      for (int n = 0; n < running; ++n) {
        const int row = m.rows[n];
        if (m.token[row] != a.eos) m.rows[kept++] = row;
      }
      *m.running = kept;
    }
    __syncthreads();
    if (*m.running == 0) break;
  }
}

template <typename C, typename scalar_t, int kTile>
int launch_tile(const DecodeArgs& a, void* stream) {
  sk::LaunchConfig config;
  config.grid = dim3(a.plan.blocks);
  config.block = dim3(kDecodeThreads);
  config.shared_bytes = a.plan.shared_bytes;
  config.stream = stream;
  config.cooperative = true;
  return sk::launch(decode_kernel<C, scalar_t, kTile>, config, a);
}

}  // namespace seqkernels
