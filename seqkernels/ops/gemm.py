"""Large matrix products on the CPU, through oneDNN where torch has it.

torch sends a float32 product on the CPU to MKL, which keeps to AVX2 on processors that are not
Intel's; oneDNN's is as fast there as anywhere, up to 2.3 times MKL's. Products under autograd, in a
transform, under a compiler, of another dtype or on another device go torch's ordinary way.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Multiply-adds below which setting oneDNN up costs more than it saves.
_LEAST_WORK = 1 << 20

_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits_onednn(a: Tensor, b: Tensor, work: int) -> bool:
    """Whether oneDNN takes the product of a and b, of `work` multiply-adds."""
    return (
        _available
        and not torch.compiler.is_compiling()
        and work >= _LEAST_WORK
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in (a, b))
        and torch.backends.mkldnn.enabled
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without derivatives: x [..., K], weight [M, K], bias [M] to [..., M]."""
    work = x.numel() * weight.shape[0]
    if not _suits_onednn(x, weight, work):
        return F.linear(x, weight, bias)
    rows = torch.ops.mkldnn._linear_pointwise(
        x.reshape(-1, x.shape[-1]), weight, bias, "none", [], ""
    )
    return rows.view(*x.shape[:-1], -1)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A [M, K] @ b [K, N] without derivatives."""
    # Where neither dimension of b is contiguous as a whole, as in a slice of columns, oneDNN takes
    # its reference product: seconds instead of milliseconds.
    whole = b.is_contiguous() or b.t().is_contiguous()
    if not whole or not _suits_onednn(a, b, a.numel() * b.shape[1]):
        return a @ b
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
