"""Run as a program: cells that the package does not have, on the CPU kernels.

Prints the instruction set in use and the number of cases checked, as JSON.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "csrc"))
sys.path.insert(0, str(Path(__file__).parent.parent / "emulator"))
sys.path.insert(0, str(Path(__file__).parent.parent / "cells"))
sys.path.insert(0, str(Path(__file__).parent.parent))

import cell_library
import steps
import torch
from parity import Case, actual, check_gradients, check_sequence, inputs_of

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
            check_gradients(cell, Case(3, 2, 3), *pair)
            check_repeats(cell, *pair)
    print(json.dumps({"isa": ops.cpu_isa(), "checked": checked}))


if __name__ == "__main__":
    main()
