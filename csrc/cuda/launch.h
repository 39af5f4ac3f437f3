// What the binding may ask of the CUDA kernels: plain structs of pointers and sizes, and functions
// that launch on a stream. No torch and no CUDA header, so both sides compile fast and apart.
//
// Tensors are contiguous. "Storage" is the dtype of the call; "carry" is float, or double for
// float64: what a sequence keeps between its steps. Every function returns a cudaError_t as int.
#pragma once
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "cells/all.h"
#include "cuda/plan/plan.h"

namespace seqkernels {

// The pointwise part of one stage of a step, `rows` rows, of a cell with G gates, P parameters, S
// states and K saved values. Null pointers leave a part out.
struct CellForwardArgs {
  int64_t rows = 0, hidden = 0;
  const void* gates_x = nullptr;  // [rows, G*H]
  // [rows, gates*H], the recurrent products of this stage and those before it, without bias.
  const void* gates_h[kMaxStages] = {};
  const void* bias_hh = nullptr;  // [(G+P)*H]
  const void* h = nullptr;        // [rows, H] previous state in storage; null: it is in the carry
  const void* c = nullptr;        // [rows, (S-1)*H]
  void* carry_h = nullptr;        // [rows, H] previous state, replaced by the new one
  void* carry_c = nullptr;        // [rows, (S-1)*H]
  const int64_t* lengths = nullptr;  // [rows]: a row whose length is at most `step` stays as it is
  int64_t step = 0;
  const bool* reset = nullptr;  // [rows]: the previous state is zero, unless the row has ended
  void* output = nullptr;       // [rows, H] new h, zeros in ended rows
  void* c_sequence = nullptr;   // [rows, (S-1)*H]
  void* saved = nullptr;        // [rows, K*H]
  void* h_next = nullptr;       // [rows, H] state after the step, ended rows included
  // Of cells with several stages.
  void* kept = nullptr;     // [rows, kept*H] carry: values that later stages read
  void* operand = nullptr;  // [rows, H] what the product of the next stage reads
};

// Gradients of one stage, the last one first. The gradient of the new h is carry_h + recurrent +
// grad_output.
struct CellBackwardArgs {
  int64_t rows = 0, hidden = 0;
  const void* grad_output = nullptr;      // [rows, H]
  const void* grad_c_sequence = nullptr;  // [rows, (S-1)*H]
  const void* recurrent = nullptr;        // [rows, H] what came back through the product
  const bool* recurrent_reset = nullptr;  // [rows]: where true, `recurrent` counts as zero
  const void* bias_hh = nullptr;          // [(G+P)*H]: parameters
  void* carry_h = nullptr;                // [rows, H] gradient of the state, replaced
  void* carry_c = nullptr;                // [rows, (S-1)*H]
  const void* previous_h = nullptr;  // [rows, H] state before the step, of the first previous_rows
  const void* previous_c = nullptr;
  const void* first_h = nullptr;  // [rows, H] the same for all other rows
  const void* first_c = nullptr;
  int64_t previous_rows = 0;
  int64_t first_at_end = 0;     // 1: a row in its last step takes first_h (reversed, with lengths)
  const void* new_h = nullptr;  // [rows, H] state after the step
  const void* new_c = nullptr;
  const void* saved = nullptr;       // [rows, K*H]
  const int64_t* lengths = nullptr;  // as in the forward
  int64_t step = 0;
  const bool* reset = nullptr;
  void* grad_gates_x = nullptr;   // [rows, G*H]
  void* grad_gates_h = nullptr;   // [rows, G*H], whole
  void* grad_separate = nullptr;  // [rows, columns*H], of the separate gates and parameters
  void* grad_h = nullptr;         // [rows, H] in storage
  void* grad_c = nullptr;
  const void* grad_operand = nullptr;  // [rows, H]: every launch but the last stage's
};

int launch_cell_forward(Cell cell, int stage, Dtype dtype, const CellForwardArgs& args,
                        void* stream);
int launch_cell_backward(Cell cell, int stage, Dtype dtype, const CellBackwardArgs& args,
                         void* stream);
// carry = storage, or zeros where `from` is null; `count` elements.
int launch_widen(Dtype dtype, void* carry, const void* from, int64_t count, void* stream);
// to = carry + recurrent (where given, and not where `reset` [rows]), [rows, hidden].
int launch_narrow(Dtype dtype, void* to, const void* carry, const void* recurrent,
                  const bool* reset, int64_t rows, int64_t hidden, void* stream);

// A whole sequence in one launch, forward or backward. Shapes as in ops.cpp; null leaves out.
// Tensors of steps and states hold all parts of the launch; weights and biases come one by one.
struct SequenceArgs {
  Plan plan;
  int32_t steps = 0;
  int32_t reverse = 0;  // a bit for each part
  int32_t trial = 0;    // 1: only to learn whether the driver takes the launch; nothing is computed
  int32_t not_cooperative = 0;  // 1: launched without that attribute, see try_launch
  // Where row n of part p lies in a tensor of steps, in rows of one part.
  int64_t row_stride = 1, part_stride = 0;
  const void *weight_hh[kMaxParts] = {}, *bias_hh[kMaxParts] = {};
  const void *weight_ih[kMaxParts] = {}, *bias_ih[kMaxParts] = {};  // of layers above the first
  const void *h_0 = nullptr, *c_0 = nullptr;
  const int64_t* lengths = nullptr;  // [N]; given for packed input too
  const int64_t* order = nullptr;    // [N]: slices take the rows in this order; null: as they lie
  const int64_t* offsets = nullptr;  // [T], packed: the row at which a step begins
  const bool* reset = nullptr;
  int64_t reset_stride = 0;  // from one part's marks to the next's; 0 where they share them
  void* exchange = nullptr;  // plan.exchange_bytes, zeroed
  // Forward.
  const void* gates_x = nullptr;
  void *h_n = nullptr, *c_n = nullptr;
  // Results of the forward, which the backward reads.
  void *output = nullptr, *c_sequence = nullptr, *saved = nullptr;
  // Backward; of stacked layers the gradients of the sequences are those of the last.
  const void *grad_output = nullptr, *grad_h_n = nullptr, *grad_c_n = nullptr;
  const void* grad_c_sequence = nullptr;
  void *grad_gates_x = nullptr, *grad_separate = nullptr;
  void *grad_h_0 = nullptr, *grad_c_0 = nullptr;
};
// Padding would be copied to the device with whatever it holds; gcc 12 clears it in the wrong place
// under -ftrivial-auto-var-init, which the emulator uses. nvcc denies it of any class with two
// bases.
#ifndef __CUDACC__
static_assert(std::has_unique_object_representations_v<CellForwardArgs> &&
              std::has_unique_object_representations_v<CellBackwardArgs> &&
              std::has_unique_object_representations_v<SequenceArgs>);
#endif
int launch_persistent(Cell cell, Math math, bool backward, const SequenceArgs& args, void* stream);
// Of one number format and pass: the build compiles persistent.cu for each.
enum class Pass { kForward, kBackward, kStackedBackward };
template <Math math, Pass pass>
int launch_persistent_as(Cell cell, const SequenceArgs& args, void* stream);
// Writes `count` numbers to device memory as kernel arguments: works in a CUDA graph and never
// waits, unlike a copy from pageable memory.
int launch_numbers(int64_t* to, const int64_t* numbers, int64_t count, void* stream);

// Facts of a device that decide what can be launched there.
struct DeviceFacts {
  int major = 0, minor = 0;
  int image = 0;  // architecture of the code it runs, 90 for sm_90a; 0: there is none
  // Clusters of blocks that each have a whole multiprocessor.
  DeviceLimits limits;
};
// Asks the CUDA runtime. device_facts (device_facts.cpp) remembers what it said.
int query_device(int device, DeviceFacts* facts);
int current_device(int* device);
// Facts of a device, asked for once in a process; -1 is the current one. Returns why none of these
// kernels can run there, or nothing.
std::string device_facts(int device, DeviceFacts* facts);
// Facts are from now on as of a device that has no more than this; 0 is no limit. For tests and
// measurements, which reach every decomposition at small sizes.
void limit_facts(int max_cluster, int max_units, int shared_per_block);
// Forgets what is known of devices. For tests, whose devices change.
void forget_devices();

// While it lives, a device is current, `stream` is a stream of its own there, and the thread may do
// what a stream capture forbids: look for what a first launch needs without becoming part of one.
class Aside {
 public:
  explicit Aside(int device);
  ~Aside();
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;
  int error = 0;
  void* stream = nullptr;

 private:
  int previous_ = -1, mode_ = 0;
};

// Of a build with SK_SPIN_LIMIT (device_spin.h): the limit, else 0, and what gave up so far, also
// after the context has died.
struct SpinReport {
  const char* wait;  // "words", "barrier" or "counter"
  int block, thread, round, peer, polls;
};
int spin_limit();
std::vector<SpinReport> spin_reports();

const char* error_name(int error);
// Whether an error says that the driver does not take such a launch, now or later.
bool refuses_launch(int error);
// That as a reason, by which the dispatcher knows it (dispatch.py).
inline std::string refusal_of(int error) {
  return "the driver refuses its launch: CUDA error " + std::to_string(error) + ": " +
         error_name(error);
}
// Whether torch allows TF32 in recurrent layers, at this moment.
bool tf32_allowed();
int zero_async(void* p, int64_t bytes, void* stream);

}  // namespace seqkernels
