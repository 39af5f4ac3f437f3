"""Fakes and autograd of the pointwise cell ops: one step, gates given."""

import torch

from .. import reference
from ..cells import CellSpec
from .registry import LIBRARY, NAMESPACE, absent, differentiable_grads, get, register_no_derivative


def register_cell(spec: CellSpec, suffix: str) -> None:
    """Register fakes and autograd of `<cell>_cell<suffix>` and its backward."""
    name = f"{spec.name}_cell{suffix}"
    two = spec.states == 2

    def fake(gates_x, gates_h, h, c, save):
        rows, hidden_size = h.shape
        return (
            h.new_empty(h.shape),
            h.new_empty(h.shape) if two else absent(h),
            h.new_empty(rows, spec.saved * hidden_size) if save and spec.saved else absent(h),
        )

    def fake_backward(grad_new_h, grad_new_c, h, c, new_h, new_c, saved):
        rows, hidden_size = h.shape
        gates = h.new_empty(rows, spec.gates * hidden_size)
        return (
            gates,
            torch.empty_like(gates) if spec.separate_hidden else absent(h),
            h.new_empty(h.shape),
            h.new_empty(h.shape) if two else absent(h),
        )

    def setup(ctx, inputs, output):
        gates_x, gates_h, h, c, save = inputs
        new_h, new_c, saved = output
        if not save:
            raise RuntimeError(f"{name}: gradients are required; call it with save=True")
        ctx.save_for_backward(gates_x, gates_h, h, c, new_h, new_c, saved)
        ctx.mark_non_differentiable(*((saved,) if two else (new_c, saved)))
        ctx.set_materialize_grads(False)

    def backward(ctx, grad_new_h, grad_new_c, grad_saved):
        gates_x, gates_h, h, c, new_h, new_c, saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            state = (h, c) if two else (h,)
            found = reference.cell(spec.name, gates_x, gates_h, state)
            grads = (grad_new_h, grad_new_c) if two else (grad_new_h,)
            return (*differentiable_grads(found, grads, (gates_x, gates_h, h, c)), None)
        grad_x, grad_h_gates, grad_h, grad_c = get(f"{name}_backward")(
            grad_new_h, grad_new_c if two else None, h, c, new_h, new_c, saved
        )
        need = ctx.needs_input_grad
        return (
            grad_x,
            grad_h_gates if spec.separate_hidden else grad_x,
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
