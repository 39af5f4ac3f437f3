// Which decomposition the persistent kernels use for a shape, and whether they can run it at all.
// Host code without CUDA or torch headers: tested without a GPU, printed by `explain`.
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
// never wait for each other, or stacked layers, each of which takes the layer below one step
// behind. A stacked layer also keeps the weights of its input product, all in shared memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "cells.h"

namespace seqkernels {

// Number format of the recurrent product. TF32 and float32 store float32.
enum class Math : int32_t { kHalf, kBFloat16, kTf32, kFloat32 };
// How h (or the gate gradients) reach the other blocks of a group.
enum class Exchange : int32_t { kNone, kCluster, kL2 };

constexpr int kMaxWarps = 8, kTileRows = 16, kTileBytes = 512, kChunkBytes = 16;
// Elements of the state that a thread owns.
constexpr int kPerThread = 2;
constexpr int kMaxPhases = 2;
// Register-resident weight tiles of a warp for each product of a step: what leaves room for the
// rest.
constexpr int kRegisterTiles = 24, kTwoPhaseRegisterTiles = 11;
constexpr int kFloat32RegisterTiles = 10, kFloat32TwoPhaseRegisterTiles = 5;
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
  int row_tiles = 0, k_splits = 0, k_tiles = 0;
  int piece_tiles = 0, per_piece = 0;  // k tiles of a piece, and of a warp in it, at most
  int per_warp = 0;                    // k tiles of a warp, at most
  int streamed = 0;                    // of these, how many are read from shared memory
  int weight_offset = 0;
};

// What a kernel needs to know; sizes and offsets of shared memory in bytes.
struct Plan {
  int64_t exchange_bytes = 0;  // global memory
  Math math = Math::kHalf;
  int hidden = 0, batch = 0;
  Exchange exchange = Exchange::kNone;
  int units = 0, blocks = 0, slices = 0;
  int rows = 0, rows_padded = 0;  // batch rows of a slice, and rounded up to 8
  int warps = 0, phases = 1;
  Phase phase[kMaxPhases];
  int input_bytes = 0;  // the exchanged values of a whole group, or what the pieces need
  int pieces = 1, peers = 0, piece_bytes = 0;
  int own_offset = 0;  // with pieces: where a block puts the values that it publishes
  int partial_offset = 0, partial_pitch = 0, bias_offset = 0, barrier_offset = 0;
  int shared_bytes = 0;
  int words = 0;  // of one block's slice, exchange through L2
  int parts = 1, stacked = 0;
  Phase below;           // stacked: the input product of the layers above the first
  int below_offset = 0;  // its input in shared memory
  int flags_offset = 0;  // in the exchange memory: steps that each block of a layer has put out
};

struct PlanRequest {
  Cell cell = Cell::kLstm;
  Math math = Math::kHalf;
  bool backward = false;
  int64_t batch = 0, hidden = 0;
  int processors = 132;              // multiprocessors
  int shared_per_block = 227 << 10;  // bytes a block may use
  int max_cluster = 16;              // 1 where there are no clusters
  int max_units = 256;               // of a block; tests lower it to cut small layers up, too
  int parts = 1;                     // recurrences of the launch
  bool stacked = false;              // they are layers, forward alone; otherwise directions
  // Clusters of 2, 4, 8 and 16 blocks that are resident together; 0 where nobody has asked.
  int clusters[4] = {};
};

struct Planned {
  Plan plan;
  double step_ns = 0;   // predicted; for choosing among decompositions, not a promise
  std::string refusal;  // why there is no plan; empty where there is one
};

inline int gates_of(Cell cell) {
  switch (cell) {
    case Cell::kLstm:
      return Lstm::kGates;
    case Cell::kGru:
      return Gru::kGates;
    case Cell::kGruResetBefore:
      return GruResetBefore::kGates;
    case Cell::kRnnTanh:
      return RnnTanh::kGates;
    case Cell::kRnnRelu:
      return RnnRelu::kGates;
  }
  return 0;
}
inline int element_bytes(Math math) {
  return math == Math::kHalf || math == Math::kBFloat16 ? 2 : 4;
}
inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

// The products of a step, in order; phase i reads what phase i - 1 (cyclically) has published.
inline int set_phases(Cell cell, bool backward, Phase (&phase)[kMaxPhases]) {
  const int gates = gates_of(cell);
  if (cell != Cell::kGruResetBefore) {
    phase[0].row_gates = backward ? 1 : gates;
    phase[0].in_width = phase[0].out_width = backward ? gates : 1;
    return 1;
  }
  if (!backward) {  // r and z from h, publishing r * h; then n from r * h, publishing h
    phase[0].row_gates = 2;
    phase[1].gate = 2;
    return 2;
  }
  // dh from (dr, dz), publishing dn; then d(r * h) from dn, publishing (dr, dz)
  phase[0].in_width = phase[1].out_width = 2;
  phase[1].gate = 2;
  return 2;
}

namespace plan_detail {

constexpr const char* kTooManyRows = "a block would own more gate rows than its warps can hold";

// Groups of `blocks` blocks that are surely resident together. Without an answer of the device:
// the processors of a chip share out into parts of at most 18, a cluster lies in one of them.
inline int resident_groups(const PlanRequest& r, Exchange exchange, int blocks) {
  if (exchange != Exchange::kCluster) return r.processors / blocks;
  int size = 0;
  while (2 << size < blocks) ++size;
  return r.clusters[size] > 0 ? r.clusters[size] : r.processors / 18 * (16 / blocks);
}

// The geometry of one product over pieces of `chunks` chunks; false where it has too many rows.
inline bool cut(Phase* f, int units, int chunks, int pieces, int in_registers) {
  f->row_tiles = ceil_div(f->row_gates * units, kTileRows);
  if (f->row_tiles > kMaxWarps) return false;
  f->piece_tiles = ceil_div(chunks, 2);
  f->k_tiles = pieces * f->piece_tiles;
  f->k_splits = std::min(kMaxWarps / f->row_tiles, f->piece_tiles);
  f->per_piece = ceil_div(f->piece_tiles, f->k_splits);
  f->per_warp = pieces * f->per_piece;
  f->streamed = std::max(0, f->per_warp - in_registers);
  return true;
}
inline int weight_bytes(const Phase& f) {
  return f.row_tiles * f.k_splits * f.streamed * kTileBytes;
}

// Fills in what follows from units, blocks, rows and exchange; false where it cannot be held.
inline bool complete(const PlanRequest& r, Plan* plan, std::string* why) {
  Plan& p = *plan;
  p.math = r.math;
  const int size = element_bytes(r.math), per_chunk = kChunkBytes / size;
  p.hidden = static_cast<int>(r.hidden);
  p.batch = static_cast<int>(r.batch);
  p.rows_padded = round_up(p.rows, 8);
  p.slices = ceil_div(p.batch, p.rows);
  p.phases = set_phases(r.cell, r.backward, p.phase);
  int in_registers = p.phases == 1 ? kRegisterTiles : kTwoPhaseRegisterTiles;
  if (r.math == Math::kFloat32) {
    in_registers = p.phases == 1 ? kFloat32RegisterTiles : kFloat32TwoPhaseRegisterTiles;
  }

  int offset = 0, slice_bytes = 0, active = 0, widest = 0;
  for (int i = 0; i < p.phases; ++i) {
    Phase& f = p.phase[i];
    const int chunks = p.peers * f.in_width * p.units / per_chunk;
    if (p.pieces > 1 && chunks % 2 != 0) {
      *why = "a piece would end within a tile";
      return false;
    }
    if (!cut(&f, p.units, chunks, p.pieces, in_registers)) {
      *why = kTooManyRows;
      return false;
    }
    active = std::max(active, f.row_tiles * f.k_splits);
    p.piece_bytes = std::max(p.piece_bytes, 2 * f.piece_tiles * p.rows_padded * kChunkBytes);
    widest = std::max(widest, f.out_width);
  }
  p.parts = r.parts;
  p.stacked = r.stacked;
  if (r.stacked) {
    p.below.row_gates = gates_of(r.cell);
    if (!cut(&p.below, p.units, p.blocks * p.units / per_chunk, 1, 0)) {
      *why = kTooManyRows;
      return false;
    }
    active = std::max(active, p.below.row_tiles * p.below.k_splits);
  }
  slice_bytes = widest * p.units / per_chunk * p.rows_padded * kChunkBytes;
  p.input_bytes = p.piece_bytes;
  if (p.pieces > 1) {
    p.own_offset = 2 * p.piece_bytes;
    p.input_bytes = p.own_offset + slice_bytes;
  }
  p.warps = std::min(kMaxWarps, std::max(active, ceil_div(p.units * p.rows, 32 * kPerThread)));
  if (p.units * p.rows > p.warps * 32 * kPerThread) {
    *why = "a block's threads cannot hold the state of so many rows";
    return false;
  }

  offset = p.input_bytes * (p.exchange == Exchange::kCluster ? 2 : 1);
  for (int i = 0; i < p.phases; ++i) {
    p.phase[i].weight_offset = offset;
    offset += weight_bytes(p.phase[i]);
  }
  if (r.stacked) {
    p.below_offset = offset;
    offset += 2 * p.below.k_tiles * p.rows_padded * kChunkBytes;
    p.below.weight_offset = offset;
    offset += weight_bytes(p.below);
  }
  p.partial_offset = offset;
  p.partial_pitch = p.rows_padded + 4;  // floats; keeps the readers of one row off one bank
  offset += active * kTileRows * p.partial_pitch * 4;
  p.bias_offset = offset;
  offset += round_up((r.stacked ? 2 : 1) * gates_of(r.cell) * p.units * 4, 16);
  p.barrier_offset = offset;
  p.shared_bytes = offset + 16;
  if (p.shared_bytes > r.shared_per_block) {
    *why = (r.stacked ? "the weights of all layers do not fit on chip: a block would need "
                      : "the recurrent weights do not fit on chip: a block would need ") +
           std::to_string(p.shared_bytes >> 10) + " KB of shared memory and has " +
           std::to_string(r.shared_per_block >> 10);
    return false;
  }
  // Blocks that wait for each other must all be resident. The groups of a cluster launch need not,
  // unless they are layers; those of a cooperative launch are, since none is made otherwise.
  const bool waits = p.exchange == Exchange::kL2 || r.stacked;
  const int groups = waits ? p.slices * p.parts : 1;
  if (waits ? groups > resident_groups(r, p.exchange, p.blocks) : p.blocks > r.processors) {
    *why = "its " + std::to_string(int64_t(p.blocks) * groups) +
           " blocks would not all be resident on " + std::to_string(r.processors) +
           " multiprocessors";
    return false;
  }
  if (p.exchange == Exchange::kL2) {
    p.words = ceil_div(slice_bytes, kWordData);
    p.exchange_bytes = int64_t(2) * p.parts * p.slices * p.blocks * p.words * kWordBytes;
  }
  if (r.stacked) {
    p.flags_offset = static_cast<int>(p.exchange_bytes);
    p.exchange_bytes += int64_t(4) * p.parts * p.slices * p.blocks;
  }
  return true;
}

// Nanoseconds of a step. Rates are data-sheet estimates for an H100 at 1.7 GHz (latencies of the
// exchanges: gpu measurements by others); only their proportions matter here.
inline double predict(const PlanRequest& r, const Plan& p) {
  constexpr double kClock = 1.7;
  const int size = element_bytes(r.math);
  const int column_pairs = ceil_div(p.rows_padded, 16);
  const auto product = [&](const Phase& f) {
    const double tiles = double(f.row_tiles) * f.k_tiles;
    if (r.math == Math::kFloat32) {
      // Of up to 4 rows none is padded. A read of the input feeds 4 products for 32 lanes.
      const int columns = p.rows == 1 ? 1 : p.rows <= 4 ? 4 : p.rows_padded;
      const double streamed = weight_bytes(f) / 128.0 * ceil_div(columns, 8);
      return (tiles * columns + streamed) / kClock;
    }
    const double issue = tiles * column_pairs * 2 * 8 / 4;  // two mma a tile, 8 clocks, 4 units
    const double latency = f.per_warp * column_pairs * 18.0;
    const double stream = weight_bytes(f) * double(column_pairs) / 128;
    return std::max({issue, latency, stream}) / kClock;
  };
  double ns = 0, exchange = 0;
  for (int i = 0; i < p.phases; ++i) {
    const Phase& f = p.phase[i];
    ns += product(f);
    const int rounds = ceil_div(p.units * p.rows, p.warps * 32);
    ns += 120 + 30 * rounds + f.k_splits * f.row_gates * 1.5 * rounds;
    const double bytes = double(f.out_width) * p.units * size * p.rows_padded * p.blocks;
    exchange = 0;
    if (p.exchange == Exchange::kCluster) exchange = 450 + bytes / 60;
    if (p.exchange == Exchange::kL2) {
      const double traffic = bytes * kWordBytes / kWordData;
      // Every piece but the first waits for its loads again.
      exchange = 800 + 700 * (p.pieces - 1);
      exchange += std::max(traffic / 100, traffic * p.blocks * p.slices * p.parts / 5000);
    }
    ns += exchange;
  }
  if (r.stacked) {
    // The input product lies in the shadow of the step's last exchange; its input comes through L2.
    const double input = double(p.blocks) * p.units * size * p.rows_padded / 100 + 300;
    return ns + std::max(0.0, product(p.below) + input - exchange);
  }
  // Groups beyond what the chip holds at once run afterwards.
  const int at_once = p.exchange == Exchange::kCluster && p.blocks == 16
                          ? std::max(1, r.processors / 18)
                          : std::max(1, r.processors / p.blocks);
  return ns * ceil_div(p.slices * p.parts, at_once);
}

}  // namespace plan_detail

// The fastest decomposition by the estimate above, or why there is none. Never throws.
inline Planned make_plan(const PlanRequest& r) {
  Planned best;
  std::string why = "the batch or the hidden size is empty", first_why;
  if (r.parts < 1 || r.parts > kMaxParts) {
    best.refusal = "a launch holds at most " + std::to_string(kMaxParts) + " layers, not " +
                   std::to_string(r.parts);
    return best;
  }
  int least = 0;  // shared memory of the refused plan that came closest
  const auto consider = [&](Exchange exchange, int units, int blocks, int rows, int peers) {
    Plan p;
    p.exchange = exchange;
    p.units = units, p.blocks = blocks, p.rows = rows;
    p.peers = peers, p.pieces = ceil_div(blocks, peers);
    if (!plan_detail::complete(r, &p, &why)) {
      if (p.shared_bytes > 0 && (least == 0 || p.shared_bytes < least)) {
        least = p.shared_bytes;
        first_why = why;
      }
      return;
    }
    const double ns = plan_detail::predict(r, p);
    if (best.plan.blocks == 0 || ns < best.step_ns) best.plan = p, best.step_ns = ns;
  };
  if (r.batch > 0 && r.hidden > 0 && r.batch <= (1 << 20) && r.hidden <= (1 << 16)) {
    const int hidden = static_cast<int>(r.hidden), batch = static_cast<int>(r.batch);
    for (int rows = std::min(8, batch); rows <= 128; rows += 8) {
      const int own = std::min(rows, batch);
      for (int units = 8; units <= r.max_units; units += 8) {
        const int blocks = ceil_div(hidden, units);
        if (blocks == 1) {
          consider(Exchange::kNone, units, 1, own, 1);
          break;
        }
        // Pieces of an even number of blocks end with a whole tile.
        consider(Exchange::kL2, units, blocks, own, blocks);
        for (int pieces = 2; r.backward && pieces <= kMaxPieces && pieces < blocks; ++pieces) {
          const int peers = round_up(ceil_div(blocks, pieces), 2);
          if (ceil_div(blocks, peers) == pieces) consider(Exchange::kL2, units, blocks, own, peers);
        }
      }
      for (int blocks = 2; blocks <= r.max_cluster; blocks *= 2) {
        const int units = round_up(ceil_div(hidden, blocks), 8);
        if (units <= r.max_units && ceil_div(hidden, units) > blocks / 2) {
          consider(Exchange::kCluster, units, blocks, own, blocks);
        }
      }
      if (own == batch) break;
    }
  } else if (r.batch > 0 && r.hidden > 0) {
    why = "the batch or the hidden size is too large";
  }
  if (best.plan.blocks == 0) best.refusal = first_why.empty() ? why : first_why;
  return best;
}

// One launch for all parts, where it is expected to be faster than a launch for each.
inline Planned make_joint_plan(const PlanRequest& r) {
  Planned joint = make_plan(r);
  if (r.parts == 1 || !joint.refusal.empty()) return joint;
  PlanRequest alone = r;
  alone.parts = 1, alone.stacked = false;
  const Planned single = make_plan(alone);
  if (single.refusal.empty() && joint.step_ns >= r.parts * single.step_ns) {
    joint.refusal = "launches of their own are estimated to be faster";
  }
  return joint;
}

inline std::string to_string(const Plan& p) {
  const char* names[] = {"no exchange", "exchange in a cluster", "exchange through L2"};
  const char* maths[] = {"float16", "bfloat16", "TF32", "float32"};
  const std::string text =
      (p.stacked      ? std::to_string(p.parts) + " layers in one launch, each "
       : p.parts == 2 ? std::string("both directions in one launch, each ")
                      : std::string()) +
      std::string(maths[static_cast<int>(p.math)]) + " products, " + std::to_string(p.blocks) +
      " blocks of " + std::to_string(p.units) + " units and " + std::to_string(p.warps) +
      " warps, " + std::to_string(p.slices) + (p.slices == 1 ? " slice of " : " slices of ") +
      std::to_string(p.rows) + " rows, " + names[static_cast<int>(p.exchange)] +
      (p.pieces > 1 ? " in " + std::to_string(p.pieces) + " pieces" : "") + ", weights: ";
  int held = 0, streamed = 0;
  for (int i = 0; i < p.phases; ++i) {
    const Phase& f = p.phase[i];
    streamed += plan_detail::weight_bytes(f);
    held += f.row_tiles * f.k_splits * (f.per_warp - f.streamed) * kTileBytes;
  }
  if (p.stacked) streamed += plan_detail::weight_bytes(p.below);
  return text + std::to_string(held >> 10) + " KB in registers and " +
         std::to_string(streamed >> 10) + " KB in shared memory of " +
         std::to_string(p.shared_bytes >> 10) + " KB";
}

}  // namespace seqkernels
