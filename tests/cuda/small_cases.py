"""Every cell, schedule and exchange once, at sizes small enough for compute-sanitizer.

Run as `compute-sanitizer --tool T python tests/cuda/small_cases.py`. Exits with 1 where a result is
not finite, or where there is no GPU.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import torch  # noqa: E402
from joined import layer_inputs, layers_actual  # noqa: E402
from parity import Case, actual, inputs_of  # noqa: E402

from seqkernels import _extension, decode  # noqa: E402
from seqkernels.cells import CELLS  # noqa: E402
from seqkernels.ops import get  # noqa: E402

CASES = (Case(3, 3, 5), Case(3, 9, 72, lengths=(3, 1, 2) * 3), Case(2, 2, 256, reverse=True))
# The persistent kernels first: the stepwise ones share nothing between threads.
SUFFIXES = ("_persistent", "")
DTYPES = (torch.bfloat16, torch.float32)


def finite(tensors) -> bool:
    """Whether all numbers are."""
    return all(bool(x.isfinite().all()) for x in tensors)


def stacked(cell: str, case: Case, device: str) -> bool:
    """Two layers in one launch, forward and backward."""
    run, back = (get(f"{cell}_layers_persistent{end}") for end in ("", "_backward"))
    inputs, layout = layer_inputs(cell, case, torch.bfloat16, 2, device)
    results = run(*inputs, *layout, True)
    grads = layers_actual(cell, inputs, layout, results, back)
    return finite([*results, *grads.values()])


def decoded(cell: str, device: str, backend: str) -> bool:
    """Greedy decoding of five tokens by one layer."""
    hidden, vocabulary, states = 16, 24, CELLS[cell].states

    def random(*shape):
        return torch.randn(shape).to(device) / 4

    gates = CELLS[cell].gates * hidden
    layer = random(gates, hidden), random(gates, hidden), random(gates), random(gates)
    projection = random(vocabulary, hidden), random(vocabulary)
    start = torch.zeros(3, dtype=torch.long, device=device)
    result = decode.greedy(
        cell,
        random(vocabulary, hidden),
        [layer],
        projection,
        (torch.zeros(1, 3, hidden, device=device),) * states,
        start,
        max_length=5,
        backend=backend,
    )
    return bool(((result.tokens >= 0) & (result.tokens < vocabulary)).all())


def main(device: str = "cuda", suffixes=SUFFIXES, decoder: str = "persistent") -> int:
    """Run all cases; the number of those whose results are wrong at a glance."""
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU")
        return 1
    if device == "cuda" and hasattr(_extension.C, "limit_plans"):
        _extension.C.limit_plans(max_units=16)  # small layers are cut up, so that they exchange
    failed = 0

    def report(good: bool, *words) -> None:
        nonlocal failed
        failed += not good
        # A run that is stopped shows how far it came.
        print(*words, "ok" if good else "WRONG", flush=True)

    for suffix in suffixes:
        for cell in CELLS:
            functions = (get(f"{cell}_sequence{suffix}"), get(f"{cell}_sequence{suffix}_backward"))
            for case in CASES:
                for dtype in DTYPES:
                    values, layout = inputs_of(cell, case, dtype, device)
                    results = actual(cell, values, layout, *functions)
                    good = finite(x for part in results for x in part.values())
                    report(good, cell, suffix or "stepwise", case, dtype)
    for cell in CELLS if "_persistent" in suffixes else ():
        for case in CASES[:2]:
            report(stacked(cell, case, device), cell, "stacked layers", case)
    for cell in ("lstm", "gru"):
        report(decoded(cell, device, decoder), cell, "greedy decoding")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
