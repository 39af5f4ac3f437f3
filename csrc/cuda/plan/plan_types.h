// What a plan of the persistent kernels says: plan.h makes one, the kernels carry it out.
//
// A group of `blocks` thread blocks shares one recurrence of `rows` batch rows; a batch wider than
// that is cut into `slices`, which never wait for each other. A block owns `units` hidden units
// with all their gates. Its slice of weight_hh is cut into tiles of 16 rows by 2 chunks (a chunk is
// 16 bytes along the summed dimension): each warp owns a row tile and a range of chunk pairs, its
// first tiles in registers, the rest in shared memory.
//
// A backward whose block cannot hold the gate gradients of its whole group takes them from L2 in
// `pieces`, each the values of `peers` blocks, into one of two buffers while the other is read.
//
// A launch may hold several recurrences, its `parts`: the two directions of a layer, whose groups
// never wait for each other, or stacked layers, each of which takes what a neighbour feeds it one
// step behind: forward the layer below its output, backward the layer above its gate gradients. A
// stacked layer also keeps the weights of that second product, its `feed`, all in shared memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "cells/all.h"

namespace seqkernels {

// Number format of the recurrent product. TF32 and float32 store float32.
enum class Math : int32_t { kHalf, kBFloat16, kTf32, kFloat32 };
// How h (or the gate gradients) reach the other blocks of a group.
enum class Exchange : int32_t { kNone, kCluster, kL2 };

constexpr int kMaxWarps = 8, kTileRows = 16, kTileBytes = 512, kChunkBytes = 16;
// Elements of the state that a thread owns.
constexpr int kPerThread = 2;
constexpr int kMaxPhases = kMaxStages;
// Register-resident weight tiles of a warp for each product of a step: what leaves room for the
// rest.
constexpr int kRegisterTiles = 24, kTwoPhaseRegisterTiles = 11;
constexpr int kFloat32RegisterTiles = 10, kFloat32TwoPhaseRegisterTiles = 5;
// The backward of stacked layers has another product beside these.
constexpr int kStackedRegisterTiles = 22, kStackedTwoPhaseRegisterTiles = 10;
constexpr int kStackedFloat32RegisterTiles = 7, kStackedFloat32TwoPhaseRegisterTiles = 4;
SK_INLINE constexpr int register_tiles(Math math, int phases, bool stacked_backward) {
  const bool one = phases == 1;
  if (math == Math::kFloat32 && stacked_backward) {
    return one ? kStackedFloat32RegisterTiles : kStackedFloat32TwoPhaseRegisterTiles;
  }
  if (math == Math::kFloat32) return one ? kFloat32RegisterTiles : kFloat32TwoPhaseRegisterTiles;
  if (stacked_backward) return one ? kStackedRegisterTiles : kStackedTwoPhaseRegisterTiles;
  return one ? kRegisterTiles : kTwoPhaseRegisterTiles;
}
// Words of the exchange through L2 carry 12 bytes and a 4-byte flag.
constexpr int kWordBytes = 16, kWordData = 12;
// Recurrences of a launch.
constexpr int kMaxParts = 8;
// Pieces of what a backward exchanges.
constexpr int kMaxPieces = 8;

// One product of a step and the exchange after its pointwise part.
struct Phase {
  int row_gates = 1;  // gate blocks among the product's rows (forward), else 1
  int in_width = 1;   // blocks of `units` values per exchanged unit that the product reads
  int out_width = 1;  // the same, that are published afterwards
  int gate = 0;       // first gate of the rows (forward) or of what is read (backward)
  int span = 0;       // backward: values of one gate that stand together in what is read
  int pieces = 1;     // what is read is taken in so many
  int row_tiles = 0, k_splits = 0, k_tiles = 0;
  int piece_tiles = 0, per_piece = 0;  // k tiles of a piece, and of a warp in it, at most
  int per_warp = 0;                    // k tiles of a warp, at most
  int streamed = 0;                    // of these, how many are read from shared memory
  int weight_offset = 0;
};

// How a shape is cut up.
struct PlanLayout {
  int hidden = 0, batch = 0;
  int units = 0, blocks = 0, slices = 0;
  int rows = 0, rows_padded = 0;  // batch rows of a slice, and rounded up to 8
  int parts = 1, stacked = 0;
  int pieces = 1, peers = 0;
  int phases = 1;
  Phase phase[kMaxPhases];
  Phase feed;  // stacked: the product of what a neighbour feeds in
};

// Where things lie: in a block's shared memory, and in the global memory of an exchange through L2.
// Offsets and sizes in bytes.
struct PlanStorage {
  int input_bytes = 0;  // the exchanged values of a whole group, or what the pieces need
  int piece_bytes = 0;
  int own_offset = 0;   // with pieces: where a block puts the values that it publishes
  int feed_offset = 0;  // stacked: what the product of the feed reads
  int partial_offset = 0, partial_pitch = 0;  // sums of the warps; floats of a row of them
  int bias_offset = 0, barrier_offset = 0;
  int shared_bytes = 0;
  int words = 0;         // of one block's values, exchange through L2
  int flags_offset = 0;  // in the exchange memory: steps that each block of a layer has put out
  int exchange_bytes = 0;
};

struct PlanLaunch {
  Exchange exchange = Exchange::kNone;
  int warps = 0;
};

// What a kernel needs to know of its plan.
struct Plan : PlanLayout, PlanStorage, PlanLaunch {};

// What plans for a device depend on; by default an H100.
struct DeviceLimits {
  int processors = 132;              // multiprocessors
  int shared_per_block = 227 << 10;  // bytes a block may use
  int max_cluster = 16;              // 1 where there are no clusters
  int max_units = 256;               // of a block; tests lower it to cut small layers up, too
  // Clusters of 2, 4, 8 and 16 blocks that are resident together; 0 where nobody has asked.
  int clusters[4] = {};
};

struct PlanRequest {
  Cell cell{};
  Math math = Math::kHalf;
  bool backward = false;
  int64_t batch = 0, hidden = 0;
  int parts = 1;         // recurrences of the launch
  bool stacked = false;  // they are layers; otherwise directions
  DeviceLimits device;
};

struct Planned {
  Plan plan;
  double step_ns = 0;   // predicted; for choosing among decompositions, not a promise
  std::string refusal;  // why there is no plan; empty where there is one
};

inline int element_bytes(Math math) {
  return math == Math::kHalf || math == Math::kBFloat16 ? 2 : 4;
}
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// The products of a step, in order; phase i reads what phase i - 1 (cyclically) has published.
// The backward takes the stages from the last to the first: phase i multiplies the gate gradients
// of the stage that came before, phase 0 those of the first stage of the step that came before.
inline int set_phases(Cell cell, bool backward, Phase (&phase)[kMaxPhases]) {
  const int stages = facts(cell).stages;
  const auto& stage = facts(cell).stage;
  for (int i = 0; i < stages; ++i) {
    const Stage& in = stage[!backward ? i : i == 0 ? 0 : stages - i];
    phase[i].gate = in.first_gate;
    (backward ? phase[i].in_width : phase[i].row_gates) = in.gates;
    if (backward) phase[i].out_width = stage[stages - 1 - i].gates;
  }
  return stages;
}

// Of a block, in shared memory.
inline int weight_bytes(const Phase& f) {
  return f.row_tiles * f.k_splits * f.streamed * kTileBytes;
}

}  // namespace seqkernels
