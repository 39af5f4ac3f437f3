"""The one tolerance rule of every test.

error(ours) <= 2 * error(torch in the same dtype) + floor, both measured against float64 as
||x - reference|| / ||reference||. It scales with the length and width of a case by itself.
"""

import torch
from torch import Tensor

# About the unit roundoff of each dtype: what one final rounding of an exact result may cost.
FLOOR = {
    torch.float64: 1e-12,
    torch.float32: 1.2e-7,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}


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
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    if theirs is not None:
        assert ours.dtype == theirs.dtype, f"{name}: dtype {ours.dtype}, torch has {theirs.dtype}"
    limit = FLOOR[ours.dtype]
    if theirs is not None:
        limit += 2 * relative_error(theirs, reference)
    error = relative_error(ours, reference)
    assert error <= limit, f"{name}: error {error:.3g} above {limit:.3g} ({ours.dtype})"
