// The pybind11 module _C: what was compiled in, and plans of the persistent CUDA kernels. Importing
// it registers the ops. No torch headers.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <map>
#include <string>

#include "cuda/plan/plan.h"
#ifdef SK_WITH_CUDA
#include "cuda/plan/plan_cache.h"
#endif

#ifndef SK_CUDA_ARCHS
#define SK_CUDA_ARCHS ""
#endif

namespace py = pybind11;
using namespace seqkernels;

namespace {

Cell cell_named(const std::string& name) {
  for (const CellFacts& f : kFacts)
    if (name == f.name) return static_cast<Cell>(&f - kFacts);
  throw py::value_error("unknown cell " + name);
}
Math math_named(const std::string& name) {
  static const std::map<std::string, Math> maths = {{"float16", Math::kHalf},
                                                    {"bfloat16", Math::kBFloat16},
                                                    {"tf32", Math::kTf32},
                                                    {"float32", Math::kFloat32}};
  const auto found = maths.find(name);
  if (found == maths.end()) throw py::value_error("no persistent kernel for " + name);
  return found->second;
}

// Members of a set below `count`.
py::tuple members(unsigned set, int count) {
  py::list found;
  for (int k = 0; k < count; ++k)
    if (in_set(set, k)) found.append(k);
  return py::tuple(found);
}

// What every cell declares, in the words of seqkernels/cells.py.
py::list cells() {
  py::list result;
  for (const CellFacts& f : kFacts) {
    py::list stages;
    for (int s = 0; s < f.stages; ++s) {
      const Stage& stage = f.stage[s];
      stages.append(py::make_tuple(stage.first_gate, stage.gates, members(stage.grads, f.gates),
                                   members(stage.saves, f.saved),
                                   members(stage.parameters, f.parameters)));
    }
    py::dict cell;
    cell["name"] = f.name;
    cell["gates"] = f.gates;
    cell["states"] = f.states;
    cell["saved"] = f.saved;
    cell["parameters"] = f.parameters;
    cell["stages"] = py::tuple(stages);
    cell["kept"] = members(f.kept, f.saved);
    cell["uses_h"] = f.uses_h;
    cell["reads_state"] = members(f.reads_state, f.states);
    cell["reads_new_state"] = members(f.reads_new_state, f.states);
    cell["separate"] = members(f.separate, f.gates);
    result.append(cell);
  }
  return result;
}

// Everything a plan says, and `refusal`, empty where there is a plan.
py::dict plan(const std::string& cell, const std::string& math, bool backward, int64_t batch,
              int64_t hidden, int processors, int shared_per_block, int max_cluster, int max_units,
              int directions, int layers) {
  PlanRequest request;
  request.cell = cell_named(cell), request.math = math_named(math), request.backward = backward;
  request.batch = batch, request.hidden = hidden;
  request.device = {processors, shared_per_block, max_cluster, max_units};
  if (directions < 1 || directions > 2 || (layers > 1 && directions > 1)) {
    throw py::value_error("a launch holds two directions or several layers");
  }
  request.parts = std::max(directions, layers);
  request.stacked = layers > 1;
  const Planned planned = make_joint_plan(request);
  const Plan& p = planned.plan;
  py::dict result;
  result["refusal"] = planned.refusal;
  if (!planned.refusal.empty()) return result;
  const char* exchanges[] = {"none", "cluster", "L2"};
  result["text"] = to_string(request.math, p);
  result["step_ns"] = planned.step_ns;
  result["exchange"] = exchanges[static_cast<int>(p.exchange)];
  result["units"] = p.units;
  result["blocks"] = p.blocks;
  result["slices"] = p.slices;
  result["rows"] = p.rows;
  result["warps"] = p.warps;
  result["shared_bytes"] = p.shared_bytes;
  result["exchange_bytes"] = p.exchange_bytes;
  result["parts"] = p.parts;
  result["pieces"] = p.pieces;
  py::list phases;
  for (int i = 0; i < p.phases + p.stacked; ++i) {
    const Phase& f = i < p.phases ? p.phase[i] : p.feed;
    py::dict phase;
    phase["row_tiles"] = f.row_tiles;
    phase["k_splits"] = f.k_splits;
    phase["k_tiles"] = f.k_tiles;
    phase["per_warp"] = f.per_warp;
    phase["streamed"] = f.streamed;
    phase["rows"] = f.row_gates * p.units;
    phase["in_width"] = f.in_width;
    phase["pieces"] = f.pieces;
    phases.append(phase);
  }
  result["phases"] = phases;
  return result;
}

#ifdef SK_WITH_CUDA
// A reason, or None where there is none.
py::object reason(const std::string& text) {
  return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

py::object device_refusal(int device) {
  DeviceFacts facts;
  return reason(device_facts(device, &facts));
}

py::dict facts_of(int device) {
  DeviceFacts facts;
  const std::string refusal = device_facts(device, &facts);
  if (!refusal.empty()) throw std::runtime_error(refusal);
  py::dict result;
  result["major"] = facts.major;
  result["minor"] = facts.minor;
  result["image"] = facts.image;
  result["processors"] = facts.limits.processors;
  result["shared_per_block"] = facts.limits.shared_per_block;
  result["max_units"] = facts.limits.max_units;
  result["max_cluster"] = facts.limits.max_cluster;
  py::list clusters;
  for (const int count : facts.limits.clusters) clusters.append(count);
  result["clusters"] = clusters;
  return result;
}

py::list spin_report() {
  py::list result;
  for (const SpinReport& r : spin_reports()) {
    py::dict record;
    record["wait"] = r.wait;
    record["block"] = r.block;
    record["thread"] = r.thread;
    record["round"] = r.round;
    record["peer"] = r.peer;
    record["polls"] = r.polls;
    result.append(record);
  }
  return result;
}

py::object refusal_of_call(const std::string& cell, const std::string& dtype, int64_t batch,
                           int64_t hidden, bool training, int directions, int layers,
                           bool backward_apart, int device) {
  DeviceFacts facts;
  if (device < 0) current_device(&device);
  const std::string refusal = device_facts(device, &facts);
  if (!refusal.empty()) return py::str(refusal);
  if (dtype == "float64") return py::str("there is no persistent kernel for float64");
  PlanRequest request;
  request.device = facts.limits;
  request.cell = cell_named(cell);
  request.math = math_named(dtype == "float32" && tf32_allowed() ? "tf32" : dtype);
  request.batch = batch, request.hidden = hidden;
  return reason(
      persistent_refusal(request, {training, directions, layers, backward_apart}, device));
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of seqkernels; importing it registers torch.ops.seqkernels.";
#ifdef SK_WITH_CUDA
  m.attr("with_cuda") = true;
  m.attr("spin_limit") = spin_limit();
  m.def("spin_report", &spin_report,
        "Where kernels gave up waiting: one record for each block, of a build with a spin limit. "
        "Numbers that are not known are -1.");
  m.def("device_refusal", &device_refusal,
        "Why no CUDA kernel can run on a device (-1: the current one), or None.",
        py::arg("device") = -1);
  m.def("device_facts", &facts_of, "What plans for a device are made from; asked once.",
        py::arg("device") = -1);
  m.def("limit_plans", &limit_facts,
        "Make plans as for a device that has no more than this (0: no limit), in the whole "
        "process: tests and measurements reach every decomposition at small sizes.",
        py::arg("max_cluster") = 0, py::arg("max_units") = 0, py::arg("shared_per_block") = 0);
  m.def("persistent_refusal", &refusal_of_call,
        "Why the persistent kernels cannot run a call on a device, or None.", py::arg("cell"),
        py::arg("dtype"), py::arg("batch"), py::arg("hidden_size"), py::arg("training") = false,
        py::arg("directions") = 1, py::arg("layers") = 1, py::arg("backward_apart") = false,
        py::arg("device") = -1);
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("cuda_archs") = SK_CUDA_ARCHS;
#ifdef __x86_64__
  __builtin_cpu_init();
  m.attr("cpu_is_intel") = __builtin_cpu_is("intel") != 0;
#else
  m.attr("cpu_is_intel") = false;
#endif
  m.attr("compiler") = __VERSION__;
  m.def("cells", &cells, "What every cell declares, by the attributes of CellSpec.");
  // Defaults: an H100.
  m.def("plan", &plan, "How the persistent kernels would cut up a shape; pure host code.",
        py::arg("cell"), py::arg("math"), py::arg("backward"), py::arg("batch"),
        py::arg("hidden_size"), py::kw_only(), py::arg("processors") = 132,
        py::arg("shared_per_block") = 227 << 10, py::arg("max_cluster") = 16,
        py::arg("max_units") = 256, py::arg("directions") = 1, py::arg("layers") = 1);
}
