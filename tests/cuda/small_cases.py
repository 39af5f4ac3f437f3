"""Every cell, schedule and exchange once, at sizes small enough for compute-sanitizer.

Run as `compute-sanitizer --tool T python tests/cuda/small_cases.py`. Exits with 1 where a result is
not finite.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import torch  # noqa: E402
from parity import Case, actual, inputs_of  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.ops import get  # noqa: E402

CASES = (Case(3, 3, 5), Case(3, 9, 72, lengths=(3, 1, 2) * 3), Case(2, 2, 256, reverse=True))


def main() -> int:
    """Run all cases; the number of those whose results are not finite."""
    failed = 0
    for cell in CELLS:
        for suffix in ("", "_persistent"):
            functions = (get(f"{cell}_sequence{suffix}"), get(f"{cell}_sequence{suffix}_backward"))
            for case in CASES:
                for dtype in (torch.float32, torch.bfloat16):
                    values, layout = inputs_of(cell, case, dtype, "cuda")
                    results = actual(cell, values, layout, *functions)
                    torch.cuda.synchronize()
                    finite = all(x.isfinite().all() for part in results for x in part.values())
                    failed += not finite
                    print(cell, suffix or "stepwise", case, dtype, "ok" if finite else "NOT FINITE")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
