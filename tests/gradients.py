"""`gradcheck` of the sequence ops of any backend, without what the package makes of them."""

from collections.abc import Callable

import torch
from parity import Case, inputs_of

from seqkernels.cells import CELLS
from seqkernels.ops.weights import bias_grads, weight_hh_grad


def check_gradients(cell: str, case: Case, forward: Callable, backward: Callable) -> None:
    """All results in all floating inputs, parameters included, in float64."""
    spec = CELLS[cell]
    values, layout = inputs_of(cell, case, torch.float64)
    leaves = [v.requires_grad_() for v in values if v is not None]

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *leaves):
            given = [*leaves, None][:5]
            *results, saved = forward(*given, *layout, True)
            ctx.save_for_backward(*leaves, results[0], results[3], saved)
            return tuple(r for r in results if r.numel())

        @staticmethod
        def backward(ctx, *grads):
            *leaves, output, c_sequence, saved = ctx.saved_tensors
            _, weight_hh, bias_hh, h_0, c_0 = [*leaves, None][:5]
            grad_x, grad_h, *states = backward(
                *[*grads, None, None][:4],
                *(weight_hh, bias_hh, h_0, c_0, output, c_sequence, saved, *layout),
            )
            weight = weight_hh_grad(spec, grad_x, grad_h, saved, h_0, output, *layout)
            bias = bias_grads(spec, grad_x, grad_h)[1]
            return (grad_x, weight, bias, *states)[: len(leaves)]

    torch.autograd.gradcheck(Recurrence.apply, leaves)
