"""Compile the Triton kernels for GPUs that are not there and read what the cubin needs.

Runs in a process of its own, without TRITON_INTERPRET: `triton.jit` picks the kind of function when
it decorates.

echo '["kinds", "90", "0", "3"]' | python tests/triton/ahead.py
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS / "cells")]

import forked  # noqa: E402
import triton  # noqa: E402
import triton_cells  # noqa: E402
from machine_barriers import Graph, step, unordered  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.triton import persistent, pointwise, sliced, stepwise  # noqa: E402
from seqkernels.triton.cells import FUNCTIONS  # noqa: E402
from seqkernels.triton.estimate import Device  # noqa: E402
from seqkernels.triton.exchange import WAIT_OPTIONS  # noqa: E402
from seqkernels.triton.layout import layout_of  # noqa: E402
from seqkernels.triton.plan import Plan, candidates, span  # noqa: E402

# A100, H100 and B200: multiprocessors, and bytes of shared memory that one program may have.
DEVICES = {80: Device(108, 163 << 10), 90: Device(132, 227 << 10), 100: Device(148, 227 << 10)}
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
COUNTED = (*TENSOR_CORE, "LDL", "STL", "CCTL", "MEMBAR")
INTEGERS = {"lengths": "*i64", "offsets": "*i64", "reset": "*u8", "counters": "*i32"}
FLOATS = ("carried", "between", "carried_h", "carried_c")
# Run-time integers, of which the compiler knows nothing.
SIZES = ("T", "N", "spans", "reverse", "rows", "t", "at", "before", "before_rows", "before_at")
SIZES += ("behind",)


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
        elif name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = INTEGERS.get(name) or ("*fp32" if name in FLOATS else "*" + pointer)
            attributes[position,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


# Without these in the PTX and without a stack none of COUNTED is in the machine code.
PTX_OF_COUNTED = re.compile(r"\b(mma|wgmma|tcgen05|fence|membar|atom|red)\b|\.(release|acquire)\b")


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
        sass = ""
        # Reading the machine code takes longer than making that of a small kernel.
        if int(usage["STACK"]) or PTX_OF_COUNTED.search(compiled.asm["ptx"]):
            sass = read(tools / "nvdisasm", "-c", file.name)
    counts = {name: len(re.findall(rf"\b{name}\b", sass)) for name in COUNTED}
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "shared": compiled.metadata.shared,
        **{name: count for name, count in counts.items() if count},
    }


# Tensors that a call may lack, and those that cells with one state, or with one stage, lack.
OPTIONAL = ("lengths", "offsets", "reset", "bias")
OTHER_STATES = ("c", "new_c", "c_0", "c_n", "c_sequence", "carried_c")
OTHER_STATES += tuple(f"grad_{name}" for name in OTHER_STATES)
BETWEEN = ("between", "operand", "operands", "grad_operand")


def absent_of(spec, direction, present):
    """Names of the tensors that a call of a cell lacks."""
    layout = layout_of(spec)
    absent = [name for name in OPTIONAL if name not in present]
    absent += () if direction == "forward" or layout.parameters else ("bias",)
    absent += () if spec.states > 1 else OTHER_STATES
    absent += BETWEEN if len(layout.stages) == 1 else ()
    absent += () if layout.columns else ("grad_gates_h",)
    absent += () if spec.separate else ("through",)
    absent += () if layout.saved else ("saved",)
    absent += ("carried",) if layout.states == layout.first_carried else ()
    return absent


def constants_of(cell, direction):
    """The constexpr arguments of every kernel of a cell."""
    return {
        "CELL": layout_of(CELLS[cell]),
        direction.upper(): getattr(FUNCTIONS[cell], direction),
    }


def planned_kernel(cell, direction, dtype, mode, hidden_size, plan, arch, present=OPTIONAL):
    """Compile the kernel of `cell` and `direction` as `plan` would launch it."""
    spec = CELLS[cell]
    options = plan.constants(spec, hidden_size, direction, itemsize_of(dtype))
    options |= {"PRECISION": mode} | constants_of(cell, direction)
    module = persistent if plan.schedule == "persistent" else sliced
    if module is persistent:
        options |= WAIT_OPTIONS
    constants = {name: x for name, x in options.items() if name.isupper()}
    launch = {name: x for name, x in options.items() if not name.isupper()}
    kernel, absent = getattr(module, f"{direction}_kernel"), absent_of(spec, direction, present)
    return compile_kernel(kernel, arch, dtype, constants, absent, **launch)


def row_kernels(cell, direction, dtype, hidden_size, arch):
    """Compile the fused cell kernels: of the stepwise schedule, and of a cell op."""
    spec = CELLS[cell]
    constants = {"SPAN": span(hidden_size, itemsize_of(dtype)), "BLOCK": pointwise._BLOCK}
    constants |= constants_of(cell, direction)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    absent = absent_of(spec, direction, OPTIONAL)
    kernel = getattr(stepwise, f"{direction}_kernel")
    for stage in range(len(spec.stages)):
        yield compile_kernel(kernel, arch, dtype, constants | {"STAGE": stage}, absent, **options)
    if spec.pointwise:
        kernel = getattr(pointwise, f"{direction}_kernel")
        yield compile_kernel(kernel, arch, dtype, constants, absent, **options)


def itemsize_of(dtype):
    return 4 if dtype == "fp32" else 2


def kind_of(plan):
    """A schedule as the proofs tell them apart."""
    if plan.schedule == "sliced":
        return "sliced"
    return "resident" if plan.resident else "split" if plan.split > 1 else "shared"


# Storage dtype and kind of product.
DTYPES = (("fp16", "ieee"), ("bf16", "ieee"), ("fp32", "tf32"), ("fp32", "ieee"))
# Hidden sizes whose rows can be loaded 16 bytes at a time, a few elements, and one by one; from one
# program alone to what no longer stays on chip.
HIDDEN_SIZES = (
    (16, 64, 128, 256, 384, 512, 768, 1024, 2048),
    (20, 100, 132, 260, 516, 764, 1028),
    (5, 37, 127, 191, 255, 341, 511, 681, 767, 1023),
)


def matrix(arch, whole):
    """Every kind of kernel at its largest: (cell, direction, dtype, mode, H, plan) each.

    Of the plans of a schedule that any shape may get, the one with the largest tiles; where the
    weights are resident also the one with the most chunks. Unless the `whole` matrix is asked for,
    what differs least is left out: rnn_relu, the middle hidden sizes, and each 16-bit dtype for
    half of the hidden sizes.
    """
    for cell, spec in CELLS.items():
        if cell == "rnn_relu" and not whole:
            continue
        for direction in ("forward", "backward"):
            for dtype, mode in DTYPES:
                for i, sizes in enumerate(HIDDEN_SIZES):
                    if not whole and (i == 1 or dtype == ("fp16", "", "bf16")[i]):
                        continue
                    found = {}
                    for hidden_size in sizes:
                        shape = (cell, direction, itemsize_of(dtype), mode, 16, hidden_size)
                        for plan in candidates(*shape, DEVICES[arch]):
                            if plan.schedule != "stepwise":
                                found.setdefault(kind_of(plan), []).append((hidden_size, plan))
                    for kind, plans in found.items():

                        def tile(x):
                            return x[1].block_n * x[1].block_h * x[1].block_k, x[0]

                        def chunks(x):
                            return sum(x[1].chunks(spec, x[0], direction)), tile(x)  # noqa: B023

                        keys = (tile, chunks) if kind == "resident" else (tile,)
                        for hidden_size, plan in {max(plans, key=key) for key in keys}:
                            yield cell, direction, dtype, mode, hidden_size, plan


def waits() -> None:
    """Print, as JSON, what each kernel that waits for other programs says when it gives up."""
    plan = Plan("persistent", 16, 16, 16, split=4, resident=True)
    for cell in ("lstm", "gru_reset_before"):
        for direction in ("forward", "backward"):
            compiled = planned_kernel(cell, direction, "fp16", "ieee", 64, plan, 90)
            texts = {
                bytes(map(int, array.split(","))).rstrip(b"\0").decode()
                for array in re.findall(r"\.b8 (?:assertMessage|printfFormat)\S+ = {([\d, ]+)}",
                                        compiled.asm["ptx"])
            }  # fmt: skip
            facts = {"name": f"{cell} {direction}", "texts": sorted(texts)}
            print(json.dumps(facts | resources(compiled)), flush=True)


def barriers(arch: int) -> None:
    """Print what a step does around its barriers, as JSON, of kernels that differ in it."""
    for cell, direction in product(CELLS, ("forward", "backward")):
        for dtype, hidden_size in (("fp16", 64), ("fp32", 37)):
            for schedule in (Plan("sliced", 16, 32, 32), Plan("persistent", 16, 16, 16, split=2)):
                kernel = cell, direction, dtype, "ieee", hidden_size, schedule, arch
                ptx = planned_kernel(*kernel).asm["ptx"]
                facts = {"name": " ".join(map(str, kernel)), "cell": cell}
                facts |= {"schedule": schedule.schedule, "unordered": unordered(ptx)}
                facts["exchanges"] = len(Graph(ptx).all_of("release"))
                if schedule.schedule == "sliced":
                    facts["step"] = step(ptx)
                print(json.dumps(facts), flush=True)


def more(arch: int) -> None:
    """Print the facts of kernels of cells that the package does not have, one of every kind."""
    with triton_cells.added():
        for cell, direction in product(triton_cells.PAIRS, ("forward", "backward")):
            found = candidates(cell, direction, 2, "ieee", 16, 512, DEVICES[arch])
            plans = {kind_of(plan): plan for plan in found if plan.schedule != "stepwise"}
            for plan in plans.values():
                kernel = (cell, direction, "fp16", "ieee", 512, plan)
                print_facts(planned_kernel(*kernel, arch), *kernel)
            for compiled in row_kernels(cell, direction, "fp32", 37, arch):
                print_row_facts(compiled, cell, direction, "fp32", 37)


def print_facts(compiled, cell, direction, dtype, mode, hidden_size, plan) -> None:
    """Print what `planned_kernel` needs of a GPU, as JSON."""
    shared = plan.shared_bytes(CELLS[cell], hidden_size, direction, itemsize_of(dtype))
    facts = {"name": f"{cell} {direction} {dtype} {mode} H{hidden_size} {plan}"}
    facts |= {"tensor_core": dtype != "fp32" or mode == "tf32", "estimate": shared}
    facts |= {"exchange": plan.members(hidden_size) > 1, "kind": kind_of(plan)}
    print(json.dumps(facts | resources(compiled)), flush=True)


def print_row_facts(compiled, cell, direction, dtype, hidden_size) -> None:
    """The same of a kernel of `row_kernels`."""
    facts = {"name": f"{compiled.name} {cell} {direction} {dtype} H{hidden_size}"}
    facts |= {"tensor_core": False, "estimate": 0, "exchange": False, "kind": "rows"}
    print(json.dumps(facts | resources(compiled)), flush=True)


def compile_part(arch: int, first: int, step: int, begin: int, end: int) -> None:
    """Print one line a kernel, the facts as JSON: of every `step`-th from `first` on, a part.

    `begin` and `end` are places in this share; an `end` of 0 is its end.
    """
    kernels = list(matrix(arch, step == 1))
    part = slice(begin, end or None)
    for kernel in kernels[first::step][part]:
        print_facts(planned_kernel(*kernel, arch), *kernel)
    cases = [(c, d, t, h) for c in CELLS for d in ("forward", "backward")
             for t in ("fp16", "fp32") for h in (64, 37)]  # fmt: skip
    for cell, direction, dtype, hidden_size in cases[first::step][part]:
        for compiled in row_kernels(cell, direction, dtype, hidden_size, arch):
            print_row_facts(compiled, cell, direction, dtype, hidden_size)


def kinds(arch: int, first: int, step: int) -> None:
    """Print the kinds of a share's kernels, without compiling any."""
    kernels = list(matrix(arch, step == 1))[first::step]
    print(len(kernels), *sorted({kind_of(kernel[-1]) for kernel in kernels}))


MODES = {"waits": waits, "barriers": barriers, "kinds": kinds, "all": compile_part, "more": more}


if __name__ == "__main__":
    forked.serve(lambda mode, *numbers: MODES[mode](*map(int, numbers)))
