// The plans of this process. Making one takes up to half a millisecond, so it is made once; and it
// is tried on the driver before anybody relies on it, so that what the dispatcher was told is what
// the launch does.
#pragma once
#include "cuda/launch.h"

namespace seqkernels {

struct KnownPlan {
  Planned planned;
  std::string apart;        // several parts: why each should have a launch of its own, or nothing
  int not_cooperative = 0;  // SequenceArgs says what it is
};

// The plan of a request on a device, or in `planned.refusal` why there is none: it does not fit, or
// the driver does not take its launch. For any number of threads at once.
KnownPlan known_plan(const PlanRequest& request, int device);

// From now on the plan is refused, for the reason returned: its launch has failed with `error`, in
// spite of the trial.
std::string refuse_plan(const PlanRequest& request, int device, int error);

// What a call of layers asks of the planner, beside its request: which launches it will make.
struct CallShape {
  bool training = false;
  int directions = 1, layers = 1;
  bool backward_apart = false;  // the backward of stacked layers has a launch for each
};
// Why the persistent kernels cannot run a call, or nothing: the answer of the very plans that its
// launches will take.
std::string persistent_refusal(PlanRequest request, const CallShape& call, int device);

// Forgets all plans. For tests, whose devices change.
void forget_plans();

}  // namespace seqkernels
