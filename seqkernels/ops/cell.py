"""Fakes and autograd of the pointwise cell ops: one step, gates given."""

import torch
from torch import Tensor

from .. import reference
from ..cells import CellSpec
from .registry import (
    LIBRARY,
    NAMESPACE,
    absent,
    differentiable_grads,
    get,
    register_no_derivative,
    same_device,
)


def kept_results(
    spec: CellSpec, h: Tensor, c: Tensor | None, new_h: Tensor, new_c: Tensor, saved: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(new_h, new_c, saved) for the backward of a step, where users may change the results.

    What it reads of the states beside h is a copy; the old state, of the same size, stands for what
    it does not read. Where the derivative is written in the new h (an RNN's), that may not be
    changed, as in torch.nn.
    """
    if 0 not in spec.reads_new_state:
        new_h = h
    if c is not None:
        new_c = new_c.clone() if any(spec.reads_new_state) else c
    return new_h, new_c, saved


def register_cell(spec: CellSpec, suffix: str) -> None:
    """Register fakes and autograd of `<cell>_cell<suffix>` and its backward."""
    name = f"{spec.name}_cell{suffix}"

    def fake(gates_x, gates_h, h, c, save):
        same_device(gates_x, gates_h, h, c)
        rows, hidden_size = h.shape
        return (
            h.new_empty(h.shape),
            absent(h) if c is None else h.new_empty(c.shape),
            h.new_empty(rows, spec.saved * hidden_size) if save and spec.saved else absent(h),
        )

    def fake_backward(grad_new_h, grad_new_c, h, c, new_h, new_c, saved):
        same_device(grad_new_h, grad_new_c, h, c, new_h, new_c, saved)
        rows, hidden_size = h.shape
        gates = h.new_empty(rows, spec.gates * hidden_size)
        return (
            gates,
            torch.empty_like(gates) if spec.separate_columns else absent(h),
            h.new_empty(h.shape),
            absent(h) if c is None else h.new_empty(c.shape),
        )

    def setup(ctx, inputs, output):
        gates_x, gates_h, h, c, save = inputs
        new_h, new_c, saved = output
        results = kept_results(spec, h, c, new_h, new_c, saved) if save else ()
        ctx.save_for_backward(gates_x, gates_h, h, c, *results)
        ctx.mark_non_differentiable(*((new_c, saved) if c is None else (saved,)))
        ctx.set_materialize_grads(False)

    def backward(ctx, grad_new_h, grad_new_c, grad_saved):
        gates_x, gates_h, h, c, *results = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = reference.cell(spec.name, gates_x, gates_h, reference.split_state(spec, h, c))
            found = found if c is None else (found[0], reference.others(found))
            grads = (grad_new_h, grad_new_c)[: len(found)]
            return (*differentiable_grads(found, grads, (gates_x, gates_h, h, c)), None)
        if not results:  # a program captured for inference
            results = get(name)(gates_x, gates_h, h, c, True)
        grad_x, grad_h_gates, grad_h, grad_c = get(f"{name}_backward")(
            grad_new_h, None if c is None else grad_new_c, h, c, *results
        )
        need = ctx.needs_input_grad
        return (
            grad_x,
            grad_h_gates if spec.separate_columns else grad_x,
            grad_h if need[2] else None,
            grad_c if need[3] else None,
            None,
        )

    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"{NAMESPACE}::{name}_backward", fake_backward, lib=LIBRARY)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY
    )
    register_no_derivative(f"{name}_backward")
