"""The one tolerance rule of every test.

error(ours) <= 2 * error(torch in the same dtype) + floor, both measured against float64 as
||x - reference|| / ||reference||. It scales with the length and width of a case by itself.

Where SEQKERNELS_RECORDS names a file, every comparison is appended to it as a line of JSON;
`collected` gives those of a block as a list.
"""

import contextlib
import json
import math
import os

import torch
from torch import Tensor

# About the unit roundoff of each dtype: what one final rounding of an exact result may cost.
FLOOR = {
    torch.float64: 1e-12,
    torch.float32: 1.2e-7,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}


_facts: dict = {}
_collected: list[dict] | None = None


@contextlib.contextmanager
def about(**facts):
    """Add facts, such as kernel and cell, to the record of every comparison inside the block."""
    global _facts
    before, _facts = _facts, {**_facts, **facts}
    try:
        yield
    finally:
        _facts = before


@contextlib.contextmanager
def collected():
    """The records of the comparisons inside the block, also of one that fails."""
    global _collected
    before, _collected = _collected, (found := [])
    try:
        yield found
    finally:
        _collected = before


def _record(name: str, dtype: torch.dtype, error: float, theirs: float, limit: float) -> None:
    """Keep what was measured, before anything is asserted of it; JSON knows no NaN."""
    record = {
        "test": os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)"),
        **_facts,
        "dtype": str(dtype).removeprefix("torch."),
        "quantity": name,
        "error": error if math.isfinite(error) else None,
        "torch_error": theirs,
        "limit": limit,
    }
    if _collected is not None:
        _collected.append(record)
    if path := os.environ.get("SEQKERNELS_RECORDS"):
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


def relative_error(x: Tensor, reference: Tensor) -> float:
    """||x - reference|| / ||reference|| in float64; of an all-zero reference, ||x||."""
    x, reference = x.detach().double().cpu(), reference.detach().double().cpu()
    assert x.shape == reference.shape, f"shape {tuple(x.shape)}, expected {tuple(reference.shape)}"
    scale = reference.norm().item()
    return (x - reference).norm().item() / (scale if scale > 0 else 1.0)


def assert_parity(ours: Tensor, theirs: Tensor | None, reference: Tensor, name: str) -> None:
    """Assert the tolerance rule for one tensor.

    Args:
        ours: the result under test.
        theirs: torch's own result in the same dtype; None stands for an exact one.
        reference: the result in float64.
        name: what is compared, for the message.
    """
    if theirs is not None:
        assert ours.dtype == theirs.dtype, f"{name}: dtype {ours.dtype}, torch has {theirs.dtype}"
    torchs = 0.0 if theirs is None else relative_error(theirs, reference)
    limit = FLOOR[ours.dtype] + 2 * torchs
    error = relative_error(ours, reference)
    _record(name, ours.dtype, error, torchs, limit)
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    assert error <= limit, f"{name}: error {error:.3g} above {limit:.3g} ({ours.dtype})"
