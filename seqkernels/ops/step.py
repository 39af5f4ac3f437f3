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
from .cell import kept_results
from .gemm import linear, matmul
from .registry import LIBRARY, NAMESPACE, absent, differentiable_grads, get, same_device
from .weights import rows_product

_below_autograd = torch._C._AutoDispatchBelowAutograd
# Rows up to which one op that reads the weights as they are beats two products made for many rows.
FEW_ROWS = 2


def register_step(spec: CellSpec) -> None:
    """Register the fake and autograd of `<cell>_step`."""

    def fake(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, save):
        same_device(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c)
        return (
            torch.empty_like(h),
            absent(h) if c is None else torch.empty_like(c),
            h.new_empty(h.shape[0], spec.saved * h.shape[1]) if save and spec.saved else absent(h),
        )

    def setup(ctx, inputs, output):
        *tensors, save = inputs
        new_h, new_c, saved = output
        _keep(ctx, spec, tensors, output if save else ())
        ctx.mark_non_differentiable(*((new_c, saved) if inputs[6] is None else (saved,)))

    def backward(ctx, grad_new_h, grad_new_c, grad_saved):
        tensors = ctx.saved_tensors
        inputs, results = tensors[:7], tensors[7:]
        if not results:  # a program captured for inference
            results = get(f"{spec.name}_step")(*inputs, True)
        need = ctx.needs_input_grad
        return (*_gradients(spec, inputs, results, (grad_new_h, grad_new_c), need), None)

    name = f"{NAMESPACE}::{spec.name}_step"
    torch.library.register_fake(name, fake, lib=LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)


def _keep(ctx, spec: CellSpec, inputs, results) -> None:
    """Save the inputs of a step and, where there are any, its results (new_h, new_c, saved)."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *(kept_results(spec, *inputs[5:7], *results) if results else ()))


def _gradients(spec: CellSpec, inputs, results, grads, need) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight_ih, weight_hh, bias_ih, bias_hh, h, c) that are needed.

    They go through the reference recurrence where they need gradients themselves.
    """
    x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = inputs
    if torch.is_grad_enabled():
        gates_x = F.linear(x, weight_ih, bias_ih)
        state = reference.split_state(spec, h, c)
        found = reference.step(spec.name, gates_x, weight_hh, bias_hh, state)
        found = found if c is None else (found[0], reference.others(found))
        return tuple(differentiable_grads(found, grads[: len(found)], tuple(inputs)))
    separate = spec.separate_columns
    with _below_autograd():
        grad_x, grad_h_gates, grad_h, grad_c = get(f"{spec.name}_cell_backward")(
            *grads, h, c, *results
        )
        if not separate:
            grad_h_gates = grad_x
        if need[5]:
            # A sum that starts from what enters beside the product, as addmm's, loses more bits
            # than one that ends with it.
            product = matmul(grad_h_gates, weight_hh)
            grad_h = grad_h.add_(product) if spec.uses_h else product
        grad_bias_ih = grad_x.sum(0) if need[3] or need[4] and not separate else None
        return (
            matmul(grad_x, weight_ih) if need[0] else None,
            rows_product((grad_x,), (x,)) if need[1] else None,
            rows_product((grad_h_gates,), (h,)) if need[2] else None,
            grad_bias_ih if need[3] else None,
            (grad_h_gates.sum(0) if separate else grad_bias_ih) if need[4] else None,
            grad_h if need[5] else None,
            grad_c if c is not None and need[6] else None,
        )


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
        ctx.spec = CELLS[name]
        inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, h, c)
        _keep(ctx, ctx.spec, inputs, (new_h, new_c, saved))
        return new_h if c is None else (new_h, new_c)

    @staticmethod
    def backward(ctx, grad_new_h, grad_new_c=None):
        """Gradients of every tensor."""
        *inputs, new_h, new_c, saved = ctx.saved_tensors
        need, grads = ctx.needs_input_grad, (grad_new_h, grad_new_c)
        found = _gradients(ctx.spec, inputs, (new_h, new_c, saved), grads, (*need[1:], False))
        return (None, *found)[: len(need)]
