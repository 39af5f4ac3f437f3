// What the binding of greedy decoding asks of its kernel, and the plan that both share. No torch
// and no CUDA header.
#pragma once
#include <cstdint>

#include "cells/all.h"
#include "cuda/launch.h"

namespace seqkernels {

constexpr int kDecodeLayers = 8, kDecodeRows = 64, kDecodeThreads = 256;

// Sizes of one call.
struct DecodeSizes {
  int gates = 0, states = 0, layers = 0, rows = 0;
  int embedding = 0, hidden = 0, vocabulary = 0;
  int element_size = 0;
};

// How a call is spread over blocks: each owns `units` hidden units of every layer and `words` of
// the vocabulary, and keeps their weights in shared memory.
struct DecodePlan {
  int blocks = 0, units = 0, words = 0;
  int tile = 0;  // rows whose inputs lie in shared memory together
  int64_t shared_bytes = 0;
  const char* refusal = nullptr;  // why there is no plan
};

SK_INLINE int64_t decode_pitch(int64_t depth) { return (depth + 3) / 4 * 4; }

// Bytes of shared memory of a block; the kernel lays it out in the same order.
inline int64_t decode_shared_bytes(const DecodeSizes& s, const DecodePlan& p) {
  const int64_t wide = decode_pitch(s.embedding), own = decode_pitch(s.hidden);
  const int64_t first = p.units * s.gates * (wide + own);
  const int64_t others = (s.layers - 1) * p.units * s.gates * 2 * own;
  const int64_t weights = (first + others + p.words * own) * s.element_size;
  const int64_t inputs = p.tile * ((wide > own ? wide : own) + own);
  const int64_t cells = int64_t(s.states - 1) * s.layers * p.units * s.rows;
  const int64_t best = 3 * (kDecodeThreads / 32) * s.rows;
  const int64_t lists = 2 * s.rows + 1;
  return (weights + 15) / 16 * 16 + (inputs + cells + best + lists) * 4;
}

// Few blocks make cheap barriers, many hold more weights: the first number of blocks that fits,
// beginning with one unit for each of a block's eight warps.
inline DecodePlan decode_plan(const DecodeSizes& s, const DeviceLimits& device) {
  DecodePlan plan;
  if (s.layers > kDecodeLayers) plan.refusal = "it is made for at most 8 layers";
  if (s.rows > kDecodeRows) plan.refusal = "it is made for at most 64 rows";
  if (s.element_size == 8) plan.refusal = "it has no float64";
  if (plan.refusal != nullptr) return plan;
  plan.tile = s.rows == 1 ? 1 : 4;
  const int warps = kDecodeThreads / 32;
  int blocks = (s.hidden + warps - 1) / warps;
  const int for_words = (s.vocabulary + 4 * warps - 1) / (4 * warps);
  blocks = blocks > for_words ? blocks : for_words;
  blocks = blocks < device.processors ? blocks : device.processors;
  for (; blocks <= device.processors; ++blocks) {
    plan.blocks = blocks;
    plan.units = (s.hidden + blocks - 1) / blocks;
    plan.words = (s.vocabulary + blocks - 1) / blocks;
    plan.shared_bytes = decode_shared_bytes(s, plan);
    if (plan.shared_bytes <= device.shared_per_block) return plan;
  }
  plan.refusal = "the weights do not fit into the shared memory of all processors";
  return plan;
}

// Tensors are contiguous; "storage" is the dtype of the call. Sizes stand in `sizes`.
struct DecodeArgs {
  DecodeSizes sizes;
  DecodePlan plan;
  const void* embedding = nullptr;  // [tokens, E]
  int64_t tokens = 0;
  const void* weight_ih[kDecodeLayers] = {};
  const void* weight_hh[kDecodeLayers] = {};
  const void* bias_ih[kDecodeLayers] = {};  // or null
  const void* bias_hh[kDecodeLayers] = {};
  const void* weight_out = nullptr;  // [V, H]
  const void* bias_out = nullptr;    // [V] or null
  const void* c_0 = nullptr;         // [L, N, (S-1)*H]: all states but h
  const int64_t* start = nullptr;    // [N]
  int64_t max_length = 0, eos = -1;
  bool scores = false;
  float* h = nullptr;                   // [2, L, N, H]: the first half holds h_0
  float* best = nullptr;                // [blocks, N] largest logit of each block's words
  float* sum = nullptr;                 // [blocks, N] sum of exp(logit - largest)
  int* word = nullptr;                  // [blocks, N]
  uint32_t* counter = nullptr;          // zero at launch
  int64_t* chosen = nullptr;            // [N, max_length], full of padding
  int64_t* lengths = nullptr;           // [N]
  float* log_probs = nullptr;           // [N], zeros
  void *h_n = nullptr, *c_n = nullptr;  // [L, N, H], [L, N, (S-1)*H] storage
};

// Of one storage type, for pointwise cells: the build compiles decode.cu for each.
// cudaErrorCooperativeLaunchTooLarge where the grid cannot be co-resident.
template <Dtype dtype>
int launch_decode_as(Cell cell, const DecodeArgs& args, void* stream);

}  // namespace seqkernels
