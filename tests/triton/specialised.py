"""Which kernels Triton would compile for a call: the keys of its cache, without a GPU.

Runs in a process of its own, without TRITON_INTERPRET. A launch is bound as on an H100 and its key
noted; nothing runs. Prints JSON: for every scenario, what should be one kernel and what is.
"""

import json
import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path[:0] = [str(Path(__file__).parents[2])]

import torch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.triton import launch, pointwise  # noqa: E402
from seqkernels.triton.plan import STEPWISE, Plan  # noqa: E402

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
SLICED = Plan("sliced", 16, 16, 16)
keys = set()


def note(kernel, *args, grid, warmup, **kwargs):
    """Stands for JITFunction.run."""
    bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
    _, specialization, options = bind(*args, **kwargs)
    keys.add(f"{kernel.fn.__module__}.{kernel.fn.__name__} {specialization} {options}")


JITFunction.run = note


def tensor(shape, dtype, shift):
    """Uninitialised; with `shift` it begins one element behind an aligned address."""
    return torch.empty(torch.Size(shape).numel() + shift, dtype=dtype)[shift:].view(shape)


def call(cell, steps, batch, hidden_size, plan=None, dtype=torch.float32, reverse=False, shift=0,
         lengths=False, packed=False, cells=False):  # fmt: skip
    """Forward and backward of a call, or of a cell step; returns the keys of their kernels."""
    keys.clear()
    spec = CELLS[cell]
    rows = (steps * batch,) if packed else (steps, batch)
    gates_x = tensor((*rows, spec.gates * hidden_size), dtype, shift)
    weight = tensor((spec.gates * hidden_size, hidden_size), dtype, shift)
    bias = tensor((spec.gates * hidden_size,), dtype, shift)
    h = tensor((batch, hidden_size), dtype, shift)
    c = h if spec.states > 1 else None
    if cells:
        new_h, new_c, saved = pointwise.forward(cell, gates_x[0], gates_x[0], h, c, True)
        pointwise.backward(cell, new_h, None, h, c, new_h, new_c, saved)
        return sorted(keys)
    ends = tensor((batch,), torch.int64, shift).fill_(steps) if lengths else None
    layout = (ends, torch.full((steps,), batch) if packed else None, None, reverse)
    results = launch.forward(cell, gates_x, weight, bias, h, c, *layout, True, plan=plan)
    output, h_n, _, c_sequence, saved = results
    given = (output, h_n, None, None, weight, bias, h, c, output, c_sequence, saved)
    launch.backward(cell, *given, *layout, plan=plan)
    return sorted(keys)


def main():
    found = {}
    for cell in CELLS:
        for plan, name in ((None, "chosen"), (SLICED, "sliced"), (STEPWISE, "stepwise")):
            same = [call(cell, t, n, 64, plan) for t, n in ((1, 17), (2, 18), (16, 31), (33, 32))]
            same.append(call(cell, 2, 17, 64, plan, reverse=True))
            same.append(call(cell, 2, 17, 64, plan, shift=1))
            found[f"{cell} {name}"] = same
        # One row, one step: no kernels of their own.
        found[f"{cell} ones"] = [call(cell, t, n, 64, SLICED) for t, n in ((1, 1), (2, 2), (7, 9))]
        ends = [call(cell, 3, n, 64, lengths=True, shift=n % 2) for n in (17, 20)]
        found[f"{cell} lengths"] = ends
        shapes = ((2, 17), (3, 20), (7, 18))
        found[f"{cell} packed"] = [call(cell, t, n, 64, packed=True) for t, n in shapes]
        for i, sizes in enumerate(((1, 3, 37, 127), (2, 50, 90), (4, 12, 64, 100))):
            found[f"{cell} H class {i}"] = [call(cell, 2, 3, h, SLICED) for h in sizes]
        if CELLS[cell].pointwise:
            rows = [call(cell, 1, n, h, cells=True) for n in (1, 2, 16, 300) for h in (4, 12, 300)]
            found[f"{cell} cell"] = rows
    print(json.dumps(found))


if __name__ == "__main__":
    main()
