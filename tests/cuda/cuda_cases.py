"""What the tests of the CUDA ops share: pairs of ops and refusals."""

from seqkernels import _extension
from seqkernels.ops import get

# Ends of op names: the stepwise and the persistent schedule, and Triton's.
SUFFIXES = ("", "_persistent", "_triton")


def pair(cell, suffix):
    """The forward and the backward op."""
    if suffix == "_triton":
        import seqkernels.triton  # noqa: F401  (defines the ops)
    return get(f"{cell}_sequence{suffix}"), get(f"{cell}_sequence{suffix}_backward")


def both(cell, suffix, values, layout):
    """Every result of the forward, and every gradient for a loss of its outputs and states."""
    forward, backward = pair(cell, suffix)
    output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
    two = c_n.numel() > 0
    grads = backward(
        output,
        h_n,
        c_n if two else None,
        None,
        *values[1:],
        output,
        c_sequence,
        saved,
        *layout,
    )
    return [output, h_n, c_n, c_sequence, *grads]


def refusal(cell, case, dtype):
    """Why the persistent kernels cannot train a case on the current device, or None."""
    name, sizes = str(dtype).removeprefix("torch."), (case.batch, case.hidden_size)
    return _extension.C.persistent_refusal(cell, name, *sizes, training=True)
