// For tests: what sk::Polls left behind in a build with a limit.
#pragma once
#include "cuda/ptx/device.h"

#ifdef SK_SPIN_LIMIT
// Six numbers of each block that gave up, in the order of sk::SpinRecord; returns how many did.
extern "C" int take_spin_records(int* numbers) {
  int count = 0;
  for (sk::SpinRecord& r : sk::spin_records) {
    if (r.wait == sk::Wait::kNothing) continue;
    const int found[] = {int(r.wait), r.block, r.thread, r.round, r.peer, r.polls};
    memcpy(numbers + 6 * count++, found, sizeof(found));
    r = {};
  }
  return count;
}
#endif
