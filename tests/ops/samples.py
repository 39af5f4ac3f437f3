"""Named sample inputs for the op tests: small, awkward and complete."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqkernels.cells import CELLS


@dataclass(frozen=True)
class Sample:
    """Sizes and options of one call of a sequence op."""

    steps: int = 3
    batch: int = 2
    hidden_size: int = 3
    lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    reset: bool = False
    reverse: bool = False


SAMPLES = {
    "plain": Sample(),
    "T1-N1-H1": Sample(1, 1, 1),
    "reverse": Sample(reverse=True),
    "lengths": Sample(lengths=(1, 3)),
    "lengths-reverse": Sample(lengths=(2, 3), reverse=True),
    "packed": Sample(batch_sizes=(2, 2, 1)),
    "packed-reverse": Sample(batch_sizes=(3, 1, 1), batch=3, reverse=True),
    "reset": Sample(reset=True),
    "reset-lengths-reverse": Sample(steps=4, lengths=(4, 2), reset=True, reverse=True),
}


def tensors(
    cell: str, sample: Sample, dtype: torch.dtype = torch.float64, requires_grad: bool = False
) -> tuple[list[Tensor | None], list]:
    """([gates_x, weight_hh, bias_hh, h_0, c_0], [lengths, batch_sizes, reset, reverse])."""
    spec = CELLS[cell]
    h = sample.hidden_size
    rows = (sum(sample.batch_sizes),) if sample.batch_sizes else (sample.steps, sample.batch)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    values = [
        random(*rows, spec.gates * h),
        random(spec.gates * h, h),
        random(spec.gates * h),
        random(sample.batch, h),
        random(sample.batch, h) if spec.states > 1 else None,
    ]
    reset = None
    if sample.reset:
        reset = torch.zeros(sample.steps, sample.batch, dtype=torch.bool)
        reset[0, 0] = reset[sample.steps // 2, -1] = True
    layout = [
        None if sample.lengths is None else torch.tensor(sample.lengths),
        None if sample.batch_sizes is None else torch.tensor(sample.batch_sizes),
        reset,
        sample.reverse,
    ]
    return values, layout
