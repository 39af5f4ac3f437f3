"""Run as a program: cells that the package does not have, on the CPU kernels.

Prints the instruction set in use and the number of cases checked, as JSON.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "emulator"))
sys.path.insert(0, str(Path(__file__).parent.parent / "cells"))
sys.path.insert(0, str(Path(__file__).parent.parent))

import cell_library
import steps
import torch
from parity import Case, actual, check_sequence, inputs_of

from seqkernels.cells import CELLS
from seqkernels.ops.weights import bias_grads, weight_hh_grad

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CASES = (
    Case(1, 1, 1),
    Case(4, 2, 200),  # units split over threads
    Case(5, 24, 65),  # rows split
    Case(6, 5, 40, lengths=(3, 5, 1, 5, 0), reverse=True),
    Case(6, 4, 38, lengths=(3, 6, 1, 4), reset=True),
    Case(6, 4, 38, lengths=(3, 6, 1, 4), reset=True, reverse=True),
    Case(4, 9, 37, batch_sizes=(9, 3, 3, 1)),
    Case(4, 9, 37, batch_sizes=(9, 3, 3, 1), reverse=True),
)


def check_gradients(cell: str, forward, backward) -> None:
    """`gradcheck` of all results in all floating inputs, parameters included."""
    values, layout = inputs_of(cell, Case(3, 2, 3), torch.float64)
    leaves = [v.requires_grad_() for v in values if v is not None]

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *leaves):
            given = [*leaves, None][:5]
            *results, saved = forward(*given, *layout, True)
            ctx.save_for_backward(*leaves, results[0], results[3], saved)
            return tuple(r for r in results if r.numel())

        @staticmethod
        def backward(ctx, *grads):
            *leaves, output, c_sequence, saved = ctx.saved_tensors
            given = [*leaves, None][:5]
            kept = (*given[1:], output, c_sequence, saved, *layout)
            found = backward(*[*grads, None, None][:4], *kept)
            return gradients(cell, given, found, saved, output, layout)[: len(leaves)]

    torch.autograd.gradcheck(Recurrence.apply, leaves)


def gradients(cell, given, found, saved, output, layout):
    """Of gates_x, weight_hh, bias_hh and the states, from what a backward op returns."""
    spec, (_, _, _, h_0, _), (grad_x, grad_h, *states) = CELLS[cell], given, found
    weight = weight_hh_grad(spec, grad_x, grad_h, saved, h_0, output, *layout)
    return (grad_x, weight, bias_grads(spec, grad_x, grad_h)[1], *states)


def check_repeats(cell: str, forward, backward) -> None:
    """A second run gives the same bits."""
    values, layout = inputs_of(cell, CASES[2], torch.float32)
    first, second = (actual(cell, values, layout, forward, backward) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    ops, checked = cell_library.load(), 0
    with steps.added():
        for cell in steps.SPECS:
            pair = [getattr(ops, f"{cell}_sequence{end}").default for end in ("", "_backward")]
            for case in CASES:
                for dtype in DTYPES:
                    check_sequence(cell, case, dtype, *pair)
                    checked += 1
            check_gradients(cell, *pair)
            check_repeats(cell, *pair)
    print(json.dumps({"isa": ops.cpu_isa(), "checked": checked}))


if __name__ == "__main__":
    main()
