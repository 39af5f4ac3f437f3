"""Dropout whose masks are drawn quickly on the CPU."""

import torch
from torch import Tensor, nn

from .checks import check_probability


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on the CPU the probability is rounded to a multiple of 2 ** -16.

    torch draws one random number of its CPU generator for each element, about 6 ns each. Here one
    draw of 64 bits decides on four elements.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero elements of any tensor and scale the others, in training."""
        threshold = round(self.p * 65536)
        ordinary = (
            not self.training
            or threshold in (0, 65536)
            or input.device.type != "cpu"
            or torch.compiler.is_compiling()
        )
        if ordinary:
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64)
        draws.random_(-(2**63), None)
        kept = draws.view(torch.int16)[: input.numel()] >= threshold - 32768
        mask = kept.to(input.dtype).mul_(65536 / (65536 - threshold))
        return input * mask.view(input.shape)


def dropout_layer(name: str, p: float, library: str = "seqkernels") -> nn.Dropout:
    """Dropout of seqkernels, or of torch.nn to compare with.

    Args:
        name: of the probability, in the message of an error.
        p: probability of zeroing an element.
        library: `seqkernels` or `torch`.

    Raises:
        TypeError: p is not a number.
        ValueError: p is not between 0 and 1.
    """
    check_probability(name, p)
    return nn.Dropout(p) if library == "torch" else Dropout(p)
