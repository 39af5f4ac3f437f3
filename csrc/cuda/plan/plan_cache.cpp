// A table of plans behind a lock that readers share.
#include "cuda/plan/plan_cache.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace seqkernels {
namespace {

// All that a plan depends on.
using Key = std::array<int64_t, 16>;
Key key_of(const PlanRequest& r, int device) {
  const DeviceLimits& d = r.device;
  return {int64_t(r.cell),    int64_t(r.math), r.backward,    r.batch, r.hidden,  d.processors,
          d.shared_per_block, d.max_cluster,   d.max_units,   r.parts, r.stacked, d.clusters[0],
          d.clusters[1],      d.clusters[2],   d.clusters[3], device};
}

// Sizes that change with every call fill it; then it starts anew.
constexpr size_t kMostPlans = 4096;
std::shared_mutex mutex;
std::map<Key, KnownPlan> plans;

// Asks the driver for the launch, by kernels that return at once. Both attributes of a stacked
// launch in clusters, the cluster's and the cooperative one, are rarely used together: where they
// are refused, the driver's word that all clusters are resident together does instead.
int try_launch(const PlanRequest& r, int device, KnownPlan* known) {
  const Aside aside(device);
  if (aside.error != 0) return aside.error;
  SequenceArgs args;
  args.plan = known->planned.plan;
  args.trial = 1;
  int error = launch_persistent(r.cell, r.math, r.backward, args, aside.stream);
  if (error != 0 && args.plan.stacked != 0 && args.plan.exchange == Exchange::kCluster) {
    args.not_cooperative = known->not_cooperative = 1;
    const int without = launch_persistent(r.cell, r.math, r.backward, args, aside.stream);
    if (without == 0) error = 0;
  }
  return error;
}

// Makes and tries a plan; `lasting` becomes false where another time may give another answer.
KnownPlan made(const PlanRequest& r, int device, bool* lasting) {
  KnownPlan known;
  known.planned = make_plan(r);
  if (!known.planned.refusal.empty()) return known;
  if (const int error = try_launch(r, device, &known)) {
    *lasting = refuses_launch(error);
    known.planned.refusal = refusal_of(error);
    return known;
  }
  if (r.parts > 1) {
    known.apart = slower_together(r, known.planned, known_plan(alone(r), device).planned);
  }
  return known;
}

}  // namespace

KnownPlan known_plan(const PlanRequest& request, int device) {
  const Key key = key_of(request, device);
  {
    const std::shared_lock<std::shared_mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
  }
  // Not under the lock: it takes long, and threads that make the same plan make the same one.
  bool lasting = true;
  KnownPlan known = made(request, device, &lasting);
  if (!lasting) return known;
  const std::unique_lock<std::shared_mutex> lock(mutex);
  if (plans.size() >= kMostPlans) plans.clear();
  return plans.try_emplace(key, std::move(known)).first->second;
}

std::string refuse_plan(const PlanRequest& request, int device, int error) {
  const Key key = key_of(request, device);
  const std::unique_lock<std::shared_mutex> lock(mutex);
  return plans[key].planned.refusal = refusal_of(error);
}

std::string persistent_refusal(PlanRequest request, const CallShape& call, int device) {
  for (const bool backward : {false, true}) {
    if (backward && !call.training) break;
    const bool apart = backward && call.backward_apart;
    request.backward = backward;
    request.stacked = call.layers > 1 && !apart;
    request.parts = call.layers > 1 && apart ? 1 : std::max(call.directions, call.layers);
    const KnownPlan known = known_plan(request, device);
    const std::string& why = known.planned.refusal.empty() ? known.apart : known.planned.refusal;
    if (!why.empty()) return (backward ? "in the backward, " : "") + why;
  }
  return "";
}

void forget_plans() {
  const std::unique_lock<std::shared_mutex> lock(mutex);
  plans.clear();
}

}  // namespace seqkernels
