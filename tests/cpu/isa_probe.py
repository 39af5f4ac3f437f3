"""Run as a program: parity of every cell and dtype on the threads named, and bit-equal reruns.

Prints the instruction set in use and the number of tensors checked, as JSON.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from cpu_cases import (
    DTYPES,
    Case,
    make_inputs,
    op,
    results_and_grads,
    run_native,
    run_reference,
)
from tolerance import assert_parity

from seqkernels.cells import CELLS

# Large enough for two threads: units split (N=2), rows split (N=24), rows of several lengths.
CASES = (
    Case(4, 2, 200),
    Case(5, 24, 65),
    Case(10, 24, 37, lengths=True, reverse=True),
    Case(10, 24, 37, packed=True),
)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    checked = 0
    for name in CELLS:
        for case in CASES:
            for dtype in DTYPES:
                inputs = make_inputs(name, case, dtype)
                doubles = {
                    k: x.double() if x is not None and x.is_floating_point() else x
                    for k, x in inputs.items()
                }
                ours = results_and_grads(run_native, name, inputs, case.reverse)
                again = results_and_grads(run_native, name, inputs, case.reverse)
                theirs = results_and_grads(run_reference, name, inputs, case.reverse)
                exact = results_and_grads(run_reference, name, doubles, case.reverse)
                for key, expected in exact.items():
                    assert_parity(ours[key], theirs[key], expected, f"{name} {case} {key}")
                    assert torch.equal(ours[key], again[key]), f"{name} {case} {key}: rerun differs"
                    checked += 1
    print(json.dumps({"isa": op("cpu_isa")(), "checked": checked}))


if __name__ == "__main__":
    main()
