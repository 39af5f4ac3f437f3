"""Compile the Triton kernels for GPUs that are not there and read what the cubin needs.

Runs in a process of its own, without TRITON_INTERPRET: `triton.jit` picks the kind of function when
it decorates.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

# Bytes of shared memory that one program may have.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
COUNTED = (*TENSOR_CORE, "LDL", "STL", "LDSM", "LDGSTS", "LDG", "CCTL", "MEMBAR")
INTEGERS = {"lengths": "*i64", "offsets": "*i64", "reset": "*u8", "counters": "*i32"}
FLOATS = ("carried",)


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
