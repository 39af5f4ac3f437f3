"""Adapters of other packages, one file each; none is needed to run the benchmarks.

An adapter has NAME, LABEL (what had to be changed to make the package run, or None),
`unavailable()` (the reason it cannot run here, or None) and `build(work, mode)`. It includes the
input projection, as torch.nn does, and raises `Refused` for what the package does not offer.
"""

import torch
from torch import Tensor, nn

from ..contestants import Prepared
from ..workload import Workload

GATE_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Adapter(nn.Module):
    """A layer with torch.nn's parameters, whatever the package's own layout is.

    A subclass's `forward(work)` returns the output [T, N, H] and the final state (h_n, c_n) or h_n,
    each [1, N, H].
    """

    def __init__(self, work: Workload):
        super().__init__()
        for name in GATE_NAMES:
            value = work.weights[f"layers.0.{name}"]
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def prepared(self, work: Workload, mode: str) -> Prepared:
        """This adapter ready to be timed; its gradients bear the names of torch.nn's."""
        names = tuple(f"layers.0.{name}" for name, _ in self.named_parameters())
        return Prepared(work.call(self, mode), names)


def no_gpu() -> str | None:
    """The reason for which a package that needs a GPU cannot run."""
    return None if torch.cuda.is_available() else "it needs a GPU"


def last(*sequences: Tensor) -> tuple[Tensor, ...]:
    """The last step of sequences [T, N, H] as states [1, N, H]."""
    return tuple(sequence[-1:] for sequence in sequences)
