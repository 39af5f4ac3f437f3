// The pybind11 module _C: what was compiled in, and plans of the persistent CUDA kernels. Importing
// it registers the ops. No torch headers.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "cuda/plan.h"
#ifdef SK_WITH_CUDA
#include "cuda/launch.h"
#endif

#ifndef SK_CUDA_ARCHS
#define SK_CUDA_ARCHS ""
#endif

namespace py = pybind11;
using namespace seqkernels;

namespace {

Cell cell_named(const std::string& name) {
  static const std::map<std::string, Cell> cells = {
#define SK_ENTRY(Type, name) {#name, Cell::k##Type},
      SK_FOR_EACH_CELL(SK_ENTRY)
#undef SK_ENTRY
  };
  const auto found = cells.find(name);
  if (found == cells.end()) throw py::value_error("unknown cell " + name);
  return found->second;
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

// Everything a plan says, and `refusal`, empty where there is a plan.
py::dict plan(const std::string& cell, const std::string& math, bool backward, int64_t batch,
              int64_t hidden, int processors, int shared_per_block, int max_cluster, int max_units,
              int directions, int layers) {
  PlanRequest request{cell_named(cell), math_named(math), backward,    batch,    hidden,
                      processors,       shared_per_block, max_cluster, max_units};
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
  result["text"] = to_string(p);
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
// Why the persistent kernels cannot run a call on the current device, or None. The backward of
// stacked layers may share a launch as well, or have one for each.
py::object persistent_refusal(const std::string& cell, const std::string& dtype, int64_t batch,
                              int64_t hidden, bool training, int directions, int layers,
                              bool backward_apart) {
  static DeviceFacts facts;
  if (facts.major == 0) {
    const int error = query_device(&facts);
    if (error != 0) return py::str(std::string("there is no usable GPU: ") + error_name(error));
  }
  if (facts.major < 8) return py::str("it needs compute capability 8.0 or newer");
  if (dtype == "float64") return py::str("there is no persistent kernel for float64");
  PlanRequest request;
  request.cell = cell_named(cell);
  request.math = math_named(dtype == "float32" && tf32_allowed() ? "tf32" : dtype);
  request.batch = batch, request.hidden = hidden;
  request.processors = facts.processors;
  request.shared_per_block = facts.shared_per_block;
  request.max_cluster = facts.max_cluster;
  request.max_units = facts.max_units;
  std::copy_n(facts.clusters, 4, request.clusters);
  // Plans take tens of microseconds, and every call of a layer asks.
  using Question = std::tuple<Cell, Math, int64_t, int64_t, bool, int, int, bool>;
  static std::map<Question, std::string> answers;
  if (answers.size() > 1000) answers.clear();
  const Question question{request.cell, request.math, batch,  hidden,
                          training,     directions,   layers, backward_apart};
  const auto [answer, fresh] = answers.try_emplace(question);
  for (int backward = 0; fresh && backward <= (training ? 1 : 0); ++backward) {
    request.backward = backward != 0;
    const bool apart = layers > 1 && backward && backward_apart;
    request.stacked = layers > 1 && !apart;
    request.parts = apart ? 1 : std::max(directions, layers);
    const std::string refusal = make_joint_plan(request).refusal;
    if (refusal.empty()) continue;
    answer->second = (backward ? "in the backward, " : "") + refusal;
    break;
  }
  if (answer->second.empty()) return py::none();
  return py::str(answer->second);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of seqkernels; importing it registers torch.ops.seqkernels.";
#ifdef SK_WITH_CUDA
  m.attr("with_cuda") = true;
  m.def("persistent_refusal", &persistent_refusal,
        "Why the persistent kernels cannot run a call on this device, or None.", py::arg("cell"),
        py::arg("dtype"), py::arg("batch"), py::arg("hidden_size"), py::arg("training") = false,
        py::arg("directions") = 1, py::arg("layers") = 1, py::arg("backward_apart") = false);
#else
  m.attr("with_cuda") = false;
#endif
  m.attr("cuda_archs") = SK_CUDA_ARCHS;
  m.attr("compiler") = __VERSION__;
  // Defaults: an H100.
  m.def("plan", &plan, "How the persistent kernels would cut up a shape; pure host code.",
        py::arg("cell"), py::arg("math"), py::arg("backward"), py::arg("batch"),
        py::arg("hidden_size"), py::kw_only(), py::arg("processors") = 132,
        py::arg("shared_per_block") = 227 << 10, py::arg("max_cluster") = 16,
        py::arg("max_units") = 256, py::arg("directions") = 1, py::arg("layers") = 1);
}
