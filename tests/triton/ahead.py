"""Compile the Triton kernels for GPUs that are not there and read what the cubin needs.

Runs in a process of its own, without TRITON_INTERPRET: `triton.jit` picks the kind of function when
it decorates.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path[:0] = [str(Path(__file__).parents[2])]

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.triton import cooperative, pointwise, reset_before, sliced  # noqa: E402
from seqkernels.triton.cells import FUNCTIONS  # noqa: E402
from seqkernels.triton.plan import Device, candidates  # noqa: E402

# A100, H100 and B200: multiprocessors, and bytes of shared memory that one program may have.
DEVICES = {80: Device(108, 163 << 10), 90: Device(132, 227 << 10), 100: Device(148, 227 << 10)}
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
COUNTED = (*TENSOR_CORE, "LDL", "STL", "LDSM", "LDGSTS", "LDG", "CCTL", "MEMBAR")
INTEGERS = {"lengths": "*i64", "offsets": "*i64", "reset": "*u8", "counters": "*i32"}
FLOATS = ("carried", "update")


def compile_kernel(kernel, arch, pointer, constants, absent=(), **options):
    """Compile `kernel`; every argument that is not a constant or a size is a pointer.

    Args:
        kernel: a jit function.
        arch: compute capability, 80 for 8.0.
        pointer: Triton's name of the storage dtype, "fp16".
        constants: constexpr arguments by name.
        absent: names of the tensors that the call does not have.
        options: num_warps and the like.
    """
    signature, values, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants or name in absent:
            signature[name], values[position,] = "constexpr", constants.get(name)
        elif name in ("T", "N", "H", "reverse"):
            signature[name] = "i32"
            if name == "H":
                attributes[position,] = [["tt.divisibility", 16]]
        else:
            signature[name] = INTEGERS.get(name) or ("*fp32" if name in FLOATS else "*" + pointer)
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled):
    """Registers, stack, shared memory and SASS opcode counts of a compiled kernel."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def read(*command):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = dict(
            re.findall(r"(REG|STACK):(\d+)", read(tools / "cuobjdump", "-res-usage", file.name))
        )
        sass = read(tools / "nvdisasm", "-c", file.name)
    counts = {name: len(re.findall(rf"\b{name}\b", sass)) for name in COUNTED}
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "shared": compiled.metadata.shared,
        **{name: count for name, count in counts.items() if count},
    }


# Names of the tensors that a call without the feature does not have.
ALWAYS_OPTIONAL = ("lengths", "offsets", "reset", "bias")
SINGLE_STATE = ("c_0", "c_n", "c_sequence", "grad_c_n", "grad_c_sequence", "grad_c_0")


def sequence_kernel(cell, direction, dtype, mode, hidden_size, batch, arch, present=()):
    """Compile what the chosen plan launches; `present` names optional tensors of the call."""
    itemsize = 4 if dtype == "fp32" else 2
    plan = candidates(cell, direction, itemsize, mode, batch, hidden_size, DEVICES[arch])[0]
    return plan, planned_kernel(cell, direction, dtype, mode, hidden_size, plan, arch, present)


def planned_kernel(cell, direction, dtype, mode, hidden_size, plan, arch, present=()):
    """Compile the kernel of `cell` and `direction` as `plan` would launch it."""
    spec = CELLS[cell]
    options = plan.constants(spec, hidden_size, direction) | {"PRECISION": mode}
    absent = [name for name in ALWAYS_OPTIONAL if name not in present]
    if spec.pointwise:
        functions = FUNCTIONS[cell]
        module = cooperative if plan.cooperative else sliced
        options |= {"CARRIES": functions.carries, "GATES": spec.gates, "SAVED": spec.saved}
        options[direction.upper()] = getattr(functions, direction)
        absent += SINGLE_STATE if spec.states == 1 else ()
        absent += () if spec.separate_hidden else ("grad_gates_h",)
        absent += () if spec.saved else ("saved",)
        absent += () if functions.carries else ("carried",)
    else:
        module = reset_before
    constants = {name: x for name, x in options.items() if name.isupper()}
    launch = {name: x for name, x in options.items() if not name.isupper()}
    kernel = getattr(module, f"{direction}_kernel")
    return compile_kernel(kernel, arch, dtype, constants, absent, **launch)


def cell_kernel(cell, direction, dtype, arch):
    """Compile a fused cell kernel."""
    spec = CELLS[cell]
    constants = {
        direction.upper(): getattr(FUNCTIONS[cell], direction),
        "STATES": spec.states,
        "GATES": spec.gates,
        "SAVED": spec.saved,
        "BLOCK": 256,
    }
    kernel = getattr(pointwise, f"{direction}_kernel")
    absent = () if spec.separate_hidden else ("grad_gates_h",)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return compile_kernel(kernel, arch, dtype, constants, absent, **options)


# Every schedule, dtype, cell and option at least once:
# cell, dtype, product, H, N, optional tensors.
CASES = (
    ("lstm", "fp16", "ieee", 512, 16, ("bias",)),
    ("lstm", "fp32", "tf32", 1024, 64, ("lengths",)),
    ("lstm", "fp32", "ieee", 256, 16, ()),
    ("gru", "bf16", "ieee", 1024, 16, ("lengths", "reset")),
    ("gru", "fp16", "ieee", 100, 4096, ("bias", "lengths", "offsets")),
    ("rnn_relu", "bf16", "ieee", 48, 4, ("bias",)),
    ("gru_reset_before", "bf16", "ieee", 256, 16, ("bias", "lengths")),
)


def main(arch: int) -> None:
    """Print one line a kernel, the facts as JSON."""
    for case in CASES:
        for direction in ("forward", "backward"):
            cell, dtype, mode, hidden_size, batch, present = case
            plan, compiled = sequence_kernel(cell, direction, *case[1:5], arch, present)
            shared = plan.shared_bytes(
                CELLS[cell], hidden_size, direction, 4 if dtype == "fp32" else 2
            )
            facts = {"name": f"{cell} {direction} {dtype} {mode} H{hidden_size} N{batch} {plan}"}
            facts |= {"tensor_core": dtype != "fp32" or mode == "tf32", "estimate": shared}
            facts |= {"exchange": plan.members(hidden_size) > 1, "resident": plan.resident}
            print(json.dumps(facts | resources(compiled)), flush=True)
    for direction in ("forward", "backward"):
        facts = {"name": f"lstm cell {direction}", "tensor_core": False, "estimate": 0}
        facts |= {"exchange": False, "resident": False}
        compiled = cell_kernel("lstm", direction, "bf16", arch)
        print(json.dumps(facts | resources(compiled)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
