"""Large matrix products on the CPU, through oneDNN where that is the faster library.

torch sends a float32 product on the CPU to MKL, which keeps to AVX2 on processors that are not
Intel's; oneDNN's is as fast there as anywhere, up to 2.3 times MKL's. On Intel's the two change
places: MKL is up to 1.5 times as fast, so products go torch's ordinary way, as do those under
autograd, in a transform, under a compiler, while a program is captured, of another dtype or on
another device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _extension

# Multiply-adds below which setting oneDNN up costs more than it saves.
_LEAST_WORK = 1 << 20

# Decided by the question that MKL itself asks, and not by timing both: sums are then in the same
# order in every run on a machine.
_ONEDNN_WINS = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.mkl.is_available()
    and _extension.C is not None
    and not _extension.C.cpu_is_intel
)


def _suits_onednn(a: Tensor, b: Tensor, work: int) -> bool:
    """Whether oneDNN takes the product of a [..., K] and b^T, b [M, K], of `work` multiply-adds."""
    return (
        _ONEDNN_WINS
        and work >= _LEAST_WORK
        and not torch.compiler.is_compiling()
        and a.dtype == b.dtype == torch.float32
        and a.device.type == b.device.type == "cpu"
        and a.shape[-1] == b.shape[1]
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in (a, b))
        # A mode would be shown an op that it does not know, a trace would keep it.
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_tracing()
        and torch.backends.mkldnn.enabled
    )


def _row_class(rows: int) -> int:
    """`rows` rounded up to four significant bits, at most an eighth more.

    oneDNN compiles and keeps a product for every number of rows it meets. Sequences of all lengths
    would add some hundred kilobytes each; so there are eight numbers between powers of two.
    """
    step = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // step) * step


def _onednn(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A [R, K], weight [M, K], bias [M] to [R, M]."""
    rows = a.shape[0]
    missing = _row_class(rows) - rows
    if missing:
        a = F.pad(a, (0, 0, 0, missing))
    return torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")[:rows]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` without derivatives: x [..., K], weight [M, K], bias [M] to [..., M]."""
    if not _suits_onednn(x, weight, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    rows = _onednn(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], -1)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A [M, K] @ b [K, N] without derivatives."""
    # Where neither dimension of b is contiguous as a whole, as in a slice of columns, oneDNN takes
    # its reference product: seconds instead of milliseconds.
    weight = b.t()
    whole = b.is_contiguous() or weight.is_contiguous()
    if not whole or not _suits_onednn(a, weight, a.numel() * b.shape[1]):
        return a @ b
    return _onednn(a, weight, None)
