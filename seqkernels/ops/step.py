"""One whole step of a cell as a single autograd node: both products and the pointwise op.

For a few rows a step takes tens of microseconds, and what it costs beside the products is the way
through dispatcher and autograd: the registered op and two linear nodes take twice as long. This is
the eager path alone; compiled, exported and transformed calls use the registered op.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..cells import CELLS, CellSpec
from .gemm import linear, matmul
from .registry import LIBRARY, NAMESPACE, absent, differentiable_grads, get
from .weights import rows_product

_below_autograd = torch._C._AutoDispatchBelowAutograd
# Rows up to which one op that reads the weights as they are beats two products made for many rows.
FEW_ROWS = 2


def register_step(spec: CellSpec) -> None:
    """Register the fake of `<cell>_step`, which has no derivative of its own."""

    def fake(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, save):
        return (
            torch.empty_like(h),
            torch.empty_like(h) if spec.states == 2 else absent(h),
            h.new_empty(h.shape[0], spec.saved * h.shape[1]) if save and spec.saved else absent(h),
        )

    torch.library.register_fake(f"{NAMESPACE}::{spec.name}_step", fake, lib=LIBRARY)


def _products_and_cell(name, x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, save):
    """(new_h, new_c, saved), below autograd."""
    few = x.shape[0] <= FEW_ROWS and x.dtype in (torch.float32, torch.float64)
    if few and x.device.type == "cpu":
        return get(f"{name}_step")(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, save)
    gates_x, gates_h = linear(x, weight_ih, bias_ih), linear(h, weight_hh, bias_hh)
    return get(f"{name}_cell")(gates_x, gates_h, h, c, save)


def infer(
    name: str,
    x: Tensor,
    state: tuple[Tensor, ...],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    """The new state, each [N, H], of one step on x [N, I], without a way back."""
    with _below_autograd():
        c = state[1] if len(state) == 2 else None
        new_h, new_c, _ = _products_and_cell(
            name, x, weight_ih, weight_hh, bias_ih, bias_hh, state[0], c, False
        )
    return (new_h, new_c) if len(state) == 2 else (new_h,)


class Step(torch.autograd.Function):
    """`Step.apply(name, x, weight_ih, weight_hh, bias_ih, bias_hh, h[, c])`: the new state."""

    @staticmethod
    def forward(ctx, name, x, weight_ih, weight_hh, bias_ih, bias_hh, h, c=None):
        """Compute the step and keep what its backward needs."""
        with _below_autograd():
            new_h, new_c, saved = _products_and_cell(
                name, x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, True
            )
        ctx.name = name
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, new_h, new_c, saved)
        return new_h if c is None else (new_h, new_c)

    @staticmethod
    def backward(ctx, grad_new_h, grad_new_c=None):
        """Gradients of every tensor, through the reference recurrence if they need gradients."""
        *inputs, new_h, new_c, saved = ctx.saved_tensors
        x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = inputs
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():
            gates_x = F.linear(x, weight_ih, bias_ih)
            state = (h,) if c is None else (h, c)
            found = reference.step(ctx.name, gates_x, weight_hh, bias_hh, state)
            grads = (grad_new_h, grad_new_c)[: len(found)]
            return (None, *differentiable_grads(found, grads, tuple(inputs)))[: len(need)]
        separate = CELLS[ctx.name].separate_hidden
        with _below_autograd():
            grad_x, grad_h_gates, grad_h, grad_c = get(f"{ctx.name}_cell_backward")(
                grad_new_h, grad_new_c, h, c, new_h, new_c, saved
            )
            if not separate:
                grad_h_gates = grad_x
            if need[6]:
                # Only the GRU's h enters its step by itself, beside the product. A sum that starts
                # from it, as addmm's, loses more bits than one that ends with it.
                product = matmul(grad_h_gates, weight_hh)
                grad_h = grad_h.add_(product) if separate else product
            grad_bias_ih = grad_x.sum(0) if need[4] or need[5] and not separate else None
            return (
                None,
                matmul(grad_x, weight_ih) if need[1] else None,
                rows_product((grad_x,), (x,)) if need[2] else None,
                rows_product((grad_h_gates,), (h,)) if need[3] else None,
                grad_bias_ih if need[4] else None,
                (grad_h_gates.sum(0) if separate else grad_bias_ih) if need[5] else None,
                grad_h if need[6] else None,
                grad_c if c is not None and need[7] else None,
            )[: len(need)]
