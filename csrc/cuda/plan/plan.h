// Which decomposition the persistent kernels use for a shape, and whether they can run it at all.
// Host code without CUDA or torch headers: tested without a GPU, printed by `explain`.
#pragma once
#include "cuda/plan/estimate.h"

namespace seqkernels {
namespace plan_detail {

// Groups of `blocks` blocks that are surely resident together. Without an answer of the device:
// the processors of a chip share out into parts of at most 18, a cluster lies in one of them.
inline int resident_groups(const PlanRequest& r, Exchange exchange, int blocks) {
  if (exchange != Exchange::kCluster) return r.device.processors / blocks;
  int size = 0;
  while (2 << size < blocks) ++size;
  return r.device.clusters[size] > 0 ? r.device.clusters[size]
                                     : r.device.processors / 18 * (16 / blocks);
}

// The geometry of one product over pieces of `chunks` chunks; false where it has too many rows.
inline bool cut(Phase* f, int units, int chunks, int pieces, int in_registers) {
  f->pieces = pieces;
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

// Cuts up the products; false where a block cannot hold them. `active` becomes the largest number
// of warps with a product.
inline bool cut_products(const PlanRequest& r, PlanLayout* layout, int* active, std::string* why) {
  PlanLayout& p = *layout;
  const int per_chunk = kChunkBytes / element_bytes(r.math);
  const auto cut_one = [&](Phase& f, int chunks, int pieces, int in_registers) {
    if (!cut(&f, p.units, chunks, pieces, in_registers)) {
      *why = "a block would own more gate rows than its warps can hold";
      return false;
    }
    *active = std::max(*active, f.row_tiles * f.k_splits);
    return true;
  };
  p.phases = set_phases(r.cell, r.backward, p.phase);
  const int in_registers = register_tiles(r.math, p.phases, r.backward && r.stacked);
  for (int i = 0; i < p.phases; ++i) {
    Phase& f = p.phase[i];
    const int chunks = p.peers * f.in_width * p.units / per_chunk;
    f.span = p.units;
    if (p.pieces > 1 && chunks % 2 != 0) {
      *why = "a piece would end within a tile";
      return false;
    }
    if (!cut_one(f, chunks, p.pieces, in_registers)) return false;
  }
  if (!r.stacked) return true;
  // Forward the layer below feeds its h to all own gates, backward the layer above the gradients of
  // all its gates to the own units, gate after gate.
  Phase& f = p.feed;
  (r.backward ? f.in_width : f.row_gates) = facts(r.cell).gates;
  f.span = p.blocks * p.units;
  const int tiles = ceil_div(f.in_width * f.span / per_chunk, 2);
  return cut_one(f, 2 * ceil_div(tiles, f.pieces), f.pieces, 0);
}

// Gives everything its place in shared memory.
inline void place(const PlanRequest& r, int active, Plan* plan) {
  Plan& p = *plan;
  const int per_chunk = kChunkBytes / element_bytes(r.math), gates = facts(r.cell).gates;
  const auto chunk_rows = [&](int chunks) { return chunks * p.rows_padded * kChunkBytes; };
  int widest = 0;
  for (int i = 0; i < p.phases; ++i) {
    p.piece_bytes = std::max(p.piece_bytes, chunk_rows(2 * p.phase[i].piece_tiles));
    widest = std::max(widest, p.phase[i].out_width);
  }
  const int own_bytes = chunk_rows(widest * p.units / per_chunk);
  p.input_bytes = p.piece_bytes;
  if (p.pieces > 1) {
    p.own_offset = 2 * p.piece_bytes;
    p.input_bytes = p.own_offset + own_bytes;
  }
  int offset = 0;
  const auto take = [&](int bytes) {
    const int at = offset;
    offset += bytes;
    return at;
  };
  take(p.input_bytes * (p.exchange == Exchange::kCluster ? 2 : 1));
  for (int i = 0; i < p.phases; ++i) p.phase[i].weight_offset = take(weight_bytes(p.phase[i]));
  if (r.stacked) {
    p.feed_offset = take(chunk_rows(2 * p.feed.piece_tiles));
    p.feed.weight_offset = take(weight_bytes(p.feed));
  }
  p.partial_pitch = p.rows_padded + 4;  // keeps the readers of one row off one bank
  p.partial_offset = take(active * kTileRows * p.partial_pitch * 4);
  const int bias_rows = gates + facts(r.cell).parameters + (r.stacked ? gates : 0);
  p.bias_offset = take(round_up(bias_rows * p.units * 4, 16));
  p.barrier_offset = take(16);
  p.shared_bytes = offset;
  if (p.exchange == Exchange::kL2) p.words = ceil_div(own_bytes, kWordData);
}
// In global memory, of blocks that are all resident.
inline void place_exchange(Plan* plan) {
  Plan& p = *plan;
  const int blocks = p.parts * p.slices * p.blocks;
  p.flags_offset = 2 * blocks * p.words * kWordBytes;
  p.exchange_bytes = p.flags_offset + (p.stacked != 0 ? 4 * blocks : 0);
}

// Whether blocks that wait for each other would all be resident. The groups of a cluster launch
// need not be, unless they are layers; those of a cooperative launch are, since none is made
// otherwise.
inline bool is_resident(const PlanRequest& r, const Plan& p, std::string* why) {
  const bool waits = p.exchange == Exchange::kL2 || r.stacked;
  const int groups = waits ? p.slices * p.parts : 1;
  if (waits ? groups <= resident_groups(r, p.exchange, p.blocks)
            : p.blocks <= r.device.processors) {
    return true;
  }
  *why = "its " + std::to_string(int64_t(p.blocks) * groups) +
         " blocks would not all be resident on " + std::to_string(r.device.processors) +
         " multiprocessors";
  return false;
}

// Fills in what follows from units, blocks, rows and exchange; false where it cannot be held.
inline bool complete(const PlanRequest& r, Plan* plan, std::string* why) {
  Plan& p = *plan;
  p.hidden = static_cast<int>(r.hidden), p.batch = static_cast<int>(r.batch);
  p.parts = r.parts, p.stacked = r.stacked;
  p.rows_padded = round_up(p.rows, 8);
  p.slices = ceil_div(p.batch, p.rows);
  int active = 0;
  if (!cut_products(r, &p, &active, why)) return false;
  p.warps = std::min(kMaxWarps, std::max(active, ceil_div(p.units * p.rows, 32 * kPerThread)));
  if (p.units * p.rows > p.warps * 32 * kPerThread) {
    *why = "a block's threads cannot hold the state of so many rows";
    return false;
  }
  place(r, active, &p);
  if (p.shared_bytes > r.device.shared_per_block) {
    *why = (r.stacked ? "the weights of all layers do not fit on chip: a block would need "
                      : "the recurrent weights do not fit on chip: a block would need ") +
           std::to_string(p.shared_bytes >> 10) + " KB of shared memory and has " +
           std::to_string(r.device.shared_per_block >> 10);
    return false;
  }
  if (!is_resident(r, p, why)) return false;
  place_exchange(&p);
  return true;
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
    // A feed in pieces waits for its loads again with each: the fewest that fit.
    const int most = r.stacked && r.backward ? kMaxPieces : 1;
    Plan whole = p;
    for (int pieces = 1; pieces <= most; pieces *= 2) {
      p = whole;
      p.feed.pieces = pieces;
      if (plan_detail::complete(r, &p, &why)) break;
      if (p.shared_bytes > 0 && (least == 0 || p.shared_bytes < least)) {
        least = p.shared_bytes;
        first_why = why;
      }
      if (pieces == most) return;
    }
    const double ns = plan_detail::predict(r, p);
    if (best.plan.blocks == 0 || ns < best.step_ns) best.plan = p, best.step_ns = ns;
  };
  if (r.batch > 0 && r.hidden > 0 && r.batch <= (1 << 20) && r.hidden <= (1 << 16)) {
    const int hidden = static_cast<int>(r.hidden), batch = static_cast<int>(r.batch);
    for (int rows = std::min(8, batch); rows <= 128; rows += 8) {
      const int own = std::min(rows, batch);
      for (int units = 8; units <= r.device.max_units; units += 8) {
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
      for (int blocks = 2; blocks <= r.device.max_cluster; blocks *= 2) {
        const int units = round_up(ceil_div(hidden, blocks), 8);
        if (units <= r.device.max_units && ceil_div(hidden, units) > blocks / 2) {
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

// The same for a launch of one part.
inline PlanRequest alone(PlanRequest r) {
  r.parts = 1, r.stacked = false;
  return r;
}
// Why each part should have a launch of its own although all fit into one, or nothing.
inline std::string slower_together(const PlanRequest& r, const Planned& joint,
                                   const Planned& single) {
  const bool slower = single.refusal.empty() && joint.step_ns >= r.parts * single.step_ns;
  return slower ? "launches of their own are estimated to be faster" : "";
}

// One launch for all parts, where it is expected to be faster than a launch for each.
inline Planned make_joint_plan(const PlanRequest& r) {
  Planned joint = make_plan(r);
  if (r.parts == 1 || !joint.refusal.empty()) return joint;
  joint.refusal = slower_together(r, joint, make_plan(alone(r)));
  return joint;
}

inline std::string to_string(Math math, const Plan& p) {
  const char* names[] = {"no exchange", "exchange in a cluster", "exchange through L2"};
  const char* maths[] = {"float16", "bfloat16", "TF32", "float32"};
  const std::string text =
      (p.stacked      ? std::to_string(p.parts) + " layers in one launch, each "
       : p.parts == 2 ? std::string("both directions in one launch, each ")
                      : std::string()) +
      std::string(maths[static_cast<int>(math)]) + " products, " + std::to_string(p.blocks) +
      " blocks of " + std::to_string(p.units) + " units and " + std::to_string(p.warps) +
      " warps, " + std::to_string(p.slices) + (p.slices == 1 ? " slice of " : " slices of ") +
      std::to_string(p.rows) + " rows, " + names[static_cast<int>(p.exchange)] +
      (p.pieces > 1 ? " in " + std::to_string(p.pieces) + " pieces" : "") + ", weights: ";
  int held = 0, streamed = 0;
  for (int i = 0; i < p.phases; ++i) {
    const Phase& f = p.phase[i];
    streamed += weight_bytes(f);
    held += f.row_tiles * f.k_splits * (f.per_warp - f.streamed) * kTileBytes;
  }
  if (p.stacked) streamed += weight_bytes(p.feed);
  return text + std::to_string(held >> 10) + " KB in registers and " +
         std::to_string(streamed >> 10) + " KB in shared memory of " +
         std::to_string(p.shared_bytes >> 10) + " KB";
}

}  // namespace seqkernels
