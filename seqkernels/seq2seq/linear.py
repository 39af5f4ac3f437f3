"""A linear layer that takes the project's large products in training too."""

import torch
from torch import Tensor, nn

from ..ops.gemm import linear, matmul
from ..ops.weights import rows_product


class _Product(torch.autograd.Function):
    """`F.linear` of rows [R, K] whose three products go through `ops`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        # Where a second derivative will be taken, stay with what autograd can follow.
        followed = torch.is_grad_enabled()
        grad_x = grad_weight = None
        if need_x:
            grad_x = grad @ weight if followed else matmul(grad, weight)
        if need_weight:
            grad_weight = grad.t() @ x if followed else rows_product((grad,), (x,))
        return grad_x, grad_weight, grad.sum(0) if need_bias else None


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster for float32 on the CPU: see `seqkernels.ops.gemm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., I] to [..., O]."""
        ordinary = (
            input.device.type != "cpu"
            or input.dtype != torch.float32
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
        )
        if ordinary:
            return super().forward(input)
        rows = _Product.apply(input.reshape(-1, input.shape[-1]), self.weight, self.bias)
        return rows.view(*input.shape[:-1], -1)


def linear_layer(
    in_features: int, out_features: int, *, bias: bool = True, library: str = "seqkernels"
) -> nn.Linear:
    """A linear layer of seqkernels, or of torch.nn to compare with."""
    kind = nn.Linear if library == "torch" else Linear
    return kind(in_features, out_features, bias=bias)
