// How long a step of a plan is expected to take: what plan.h chooses decompositions by.
#pragma once
#include "cuda/plan/plan_types.h"

namespace seqkernels {
namespace plan_detail {

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
    // The product of the feed lies in the shadow of the step's last exchange; its input comes
    // through L2, as wide as what is exchanged, and in pieces it waits for each.
    const double bytes = double(p.feed.in_width) * p.feed.span * size * p.rows_padded;
    double input = bytes / 100 + 300;
    if (r.backward) {
      const double all = bytes * p.blocks * p.slices * (p.parts - 1);
      input = std::max(bytes / 100, all / 5000) + 300 + 700 * (p.feed.pieces - 1);
    }
    return ns + std::max(0.0, product(p.feed) + input - exchange);
  }
  // Groups beyond what the chip holds at once run afterwards.
  const int at_once = p.exchange == Exchange::kCluster && p.blocks == 16
                          ? std::max(1, r.device.processors / 18)
                          : std::max(1, r.device.processors / p.blocks);
  return ns * ceil_div(p.slices * p.parts, at_once);
}

}  // namespace plan_detail
}  // namespace seqkernels
