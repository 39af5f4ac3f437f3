// Plans and device facts under many threads at once, to be run under the race checker: what threads
// are told is what the planner says, a device is asked once, and a plan is tried at most once by
// each thread that found it missing.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "cuda/plan/plan_cache.h"

namespace seqkernels {

// Devices that no kernel can run on, beside 0 and 1.
enum { kOld = 2, kWithoutImage, kOldDriver };

// The parts of the CUDA side that these two files call.
std::atomic<int> trials{0}, queries{0};
int launch_persistent(Cell, Math, bool, const SequenceArgs& args, void*) {
  if (args.trial == 0) return 1;
  ++trials;
  return 0;
}
int query_device(int device, DeviceFacts* facts) {
  ++queries;
  *facts = DeviceFacts{};
  facts->major = 9, facts->image = 90, facts->limits.processors = 132 + device;
  if (device == kOld) facts->major = 7, facts->minor = 5;
  if (device == kWithoutImage) facts->major = 12, facts->image = 0;
  return device == kOldDriver ? 35 : 0;
}
int current_device(int* device) {
  *device = 0;
  return 0;
}
Aside::Aside(int) {}
Aside::~Aside() {}
const char* error_name(int) { return "of a test"; }
bool refuses_launch(int) { return true; }

}  // namespace seqkernels

using namespace seqkernels;

namespace {

constexpr int kThreads = 8, kRequests = 24, kRounds = 40, kRefused = 5;
std::atomic<int> wrong{0};

PlanRequest request(int i) {
  DeviceFacts facts;
  if (!device_facts(i % 2, &facts).empty() || facts.limits.processors != 132 + i % 2) ++wrong;
  PlanRequest r;
  r.device = facts.limits;
  r.cell = static_cast<Cell>(i % 3 == 0);
  r.backward = i % 2 == 0;
  r.batch = 1 + i % 5, r.hidden = 16 + 8 * (i % 7);
  return r;
}

bool same(const Planned& one, const Planned& other) {
  return one.refusal == other.refusal && one.step_ns == other.step_ns &&
         to_string(Math::kHalf, one.plan) == to_string(Math::kHalf, other.plan);
}

void look_up(int thread) {
  for (int round = 0; round < kRounds; ++round) {
    for (int n = 0; n < kRequests; ++n) {
      const int i = (n + thread) % kRequests;
      if (i == kRefused) continue;
      const PlanRequest r = request(i);
      if (!same(known_plan(r, i % 2).planned, make_plan(r))) ++wrong;
    }
    const PlanRequest r = request(kRefused);
    if (thread == 0 && round == 1) refuse_plan(r, 1, 701);
    const std::string refusal = known_plan(r, 1).planned.refusal;
    if (thread == 0 && round > 0 && refusal != refusal_of(701)) ++wrong;
  }
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(look_up, t);
  for (std::thread& t : threads) t.join();
  const int before = trials;
  look_up(1);
  std::printf("%d %d %d %d\n", wrong.load(), queries.load(), before, trials - before);
  for (const int device : {kOld, kWithoutImage, kOldDriver}) {
    DeviceFacts facts;
    std::printf("%s\n", device_facts(device, &facts).c_str());
  }
}
