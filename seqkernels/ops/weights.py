"""Gradients of the recurrent weights and biases: large products over all steps at once.

Every backend's backward gives the gradients of the pre-activations; what follows from them is the
same for all and stands here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _extension
from ..cells import CellSpec
from .packed import batch_sizes_on, last_places
from .registry import LIBRARY, NAMESPACE, get, register_no_derivative, same_device


def fold_bias(
    spec: CellSpec, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The biases to add with the input projection and inside the recurrence, each [G*H] or None.

    Only a cell with separate gates (the reset-after GRU) needs its recurrent bias inside the step,
    and one with parameters these; elsewhere both biases are added once, with the projection.
    """
    if bias_hh is None or spec.separate_columns:
        return bias_ih, bias_hh
    return (bias_hh if bias_ih is None else bias_ih + bias_hh), None


def _previous_h(
    h_0: Tensor, output: Tensor, lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> Tensor:
    """The hidden state that entered every step, [T, N, H].

    Steps past a row's end hold any finite value: their gate gradients are zero.
    """
    h_0 = h_0.unsqueeze(0)
    if not reverse:
        previous = torch.cat((h_0, output[:-1]))
    else:
        previous = torch.cat((output[1:], h_0))
        if lengths is not None:
            steps = torch.arange(1, output.shape[0] + 1, device=output.device).unsqueeze(-1)
            previous = torch.where((steps >= lengths).unsqueeze(-1), h_0, previous)
    if reset is not None:
        previous = previous.masked_fill(reset.unsqueeze(-1), 0)
    return previous


def _previous_h_packed(
    h_0: Tensor, output: Tensor, batch_sizes: Tensor, reverse: bool
) -> list[Tensor]:
    """The same for packed input, in pieces: together [sum(batch_sizes), H]."""
    batch, rows, device = h_0.shape[0], output.shape[0], output.device
    sizes = batch_sizes_on(batch_sizes, batch, rows, device)
    if not reverse:
        # A row lies as far behind its previous step as that step has rows.
        before = sizes[:-1].repeat_interleave(sizes[1:], output_size=rows - batch)
        return [h_0, output.index_select(0, torch.arange(batch, rows, device=device) - before)]
    after = sizes.repeat_interleave(sizes, output_size=rows)
    index = (torch.arange(rows, device=device) + after).clamp(max=rows - 1)
    previous = output.index_select(0, index)
    # A row's last step has no next one: what was selected there belongs to another row.
    return [previous.index_copy_(0, last_places(sizes, batch), h_0)]


def _entering_h(
    h_0: Tensor,
    output: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """The hidden states that entered all steps, in order, in pieces of [rows, H].

    In the plain case the pieces are views of h_0 and `output`, so nothing of the length of the
    sequence is copied. Packed input takes one selection of rows.
    """
    if batch_sizes is not None:
        return _previous_h_packed(h_0, output, batch_sizes, reverse)
    if reset is not None or (reverse and lengths is not None):
        return [_previous_h(h_0, output, lengths, reset, reverse).flatten(0, 1)]
    if reverse:
        return [output[1:].flatten(0, 1), h_0]
    return [h_0, output[:-1].flatten(0, 1)]


def register_rows_product() -> None:
    """Register the fake of `rows_product`, which has no derivative of its own."""

    def fake(grads, x):
        same_device(*grads, *x)
        return grads[0].new_empty(sum(grad.shape[1] for grad in grads), x[0].shape[1])

    torch.library.register_fake(f"{NAMESPACE}::rows_product", fake, lib=LIBRARY)
    register_no_derivative("rows_product")


def rows_product(grads: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """The gradient of a weight: grad^T x, summed over all rows, without derivatives.

    Args:
        grads: gradients of the pre-activations side by side, each [R, M].
        x: inputs one on another, together [R, K].

    Returns:
        [sum of M, K].
    """
    grad = grads[0]
    if (
        _extension.C is not None
        and grad.device.type == "cpu"
        and grad.dtype in (torch.float32, torch.float64)
    ):
        return get("rows_product")(grads, x)
    whole = grads[0] if len(grads) == 1 else torch.cat(tuple(grads), 1)
    total, row = None, 0
    for part in x:
        product = whole[row : row + part.shape[0]].t() @ part
        total = product if total is None else total + product
        row += part.shape[0]
    return total


def weight_hh_grad(
    spec: CellSpec,
    grad_gates_x: Tensor,
    grad_gates_h: Tensor,
    saved: Tensor,
    h_0: Tensor,
    output: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> Tensor:
    """grad_weight_hh, [G*H, H], from the gate gradients of all steps."""
    H = output.shape[-1]
    h = _entering_h(h_0, output, lengths, batch_sizes, reset, reverse)
    # By whether they are separate.
    grads = grad_gates_x.flatten(0, -2), grad_gates_h.flatten(0, -2) if spec.separate else None
    parts = [
        [grads[r.separate][:, r.column * H : (r.column + r.gates) * H] for r in runs]
        for runs in spec.runs
    ]
    first = rows_product(parts[0], h)
    if len(parts) == 1:
        return first
    values = saved.flatten(0, -2).split(H, -1)
    rows = [part.shape[0] for part in h]
    values = zip(*(value.split(rows) for value in values), strict=True)
    operand = [spec.operand(saved, part) for saved, part in zip(values, h, strict=True)]
    return torch.cat((first, rows_product(parts[1], operand)))


def bias_grads(spec: CellSpec, grad_gates_x: Tensor, grad_gates_h: Tensor) -> tuple[Tensor, Tensor]:
    """(grad_bias_ih, grad_bias_hh): [G*H], and [(G + P)*H] with the gradients of parameters."""
    grad_ih = grad_gates_x.flatten(0, -2).sum(0)
    if not spec.separate_columns:
        return grad_ih, grad_ih.clone()
    columns = list(grad_ih.chunk(spec.gates))
    separate = grad_gates_h.flatten(0, -2).sum(0).chunk(spec.separate_columns)
    for gate, column in zip(spec.separate, separate, strict=False):
        columns[gate] = column
    return grad_ih, torch.cat((*columns, *separate[len(spec.separate) :]))
