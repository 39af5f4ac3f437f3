"""Gradients of the recurrent weights and biases: large products over all steps at once.

Every backend's backward gives the gradients of the pre-activations; what follows from them is the
same for all and stands here.
"""

import torch
from torch import Tensor

from ..cells import CellSpec
from .gemm import matmul


def fold_bias(
    spec: CellSpec, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The biases to add with the input projection and inside the recurrence, each [G*H] or None.

    Only the reset-after GRU needs its recurrent bias inside the step; elsewhere both biases are
    added once, with the projection.
    """
    if bias_hh is None or spec.separate_hidden:
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


def _previous_h_packed(h_0: Tensor, output: Tensor, batch_sizes: Tensor, reverse: bool) -> Tensor:
    """The same for packed input, [sum(batch_sizes), H]."""
    sizes = batch_sizes.tolist()
    steps = output.split(sizes)
    if not reverse:
        return torch.cat([h_0, *(step[:n] for step, n in zip(steps, sizes[1:], strict=False))])
    pieces = []
    for t, n in enumerate(sizes):
        following = sizes[t + 1] if t + 1 < len(sizes) else 0
        pieces += [steps[t + 1] if following else output[:0], h_0[following:n]]
    return torch.cat(pieces)


def _slices(
    h_0: Tensor,
    output: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> list[tuple[slice, Tensor]]:
    """(rows of the gate gradients, the hidden state that entered them), covering all steps.

    In the plain case the states are views of `output`, so nothing of the length of the sequence is
    copied.
    """
    if batch_sizes is not None:
        return [(slice(None), _previous_h_packed(h_0, output, batch_sizes, reverse))]
    if reset is not None or (reverse and lengths is not None):
        return [(slice(None), _previous_h(h_0, output, lengths, reset, reverse).flatten(0, 1))]
    steps, rows = output.shape[:2]
    last = (steps - 1) * rows
    if reverse:
        return [(slice(last, None), h_0), (slice(0, last), output[1:].flatten(0, 1))]
    return [(slice(0, rows), h_0), (slice(rows, None), output[:-1].flatten(0, 1))]


# Rows, as a share of grad's columns, from which turning the product pays for turning it back.
_TURNED_ROWS = 0.25


def rows_product(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x, the sum over all rows of grad [R, G*H] and x [R, I]: [G*H, I].

    With many rows it is formed as (x^T grad)^T: oneDNN is up to 1.3 times as fast, with two threads
    1.6 times, where the second operand has the more columns; turning the result back then costs a
    hundredth of the product. For fewer than 12 columns of x MKL also adds the float32 products up
    one after another: over 4000 rows the error is 1.1e-6, and 2.7e-7 with the operands swapped.
    """
    columns, width = grad.shape[1], x.shape[1]
    if width < columns and (width < 12 or grad.shape[0] >= _TURNED_ROWS * columns):
        return matmul(x.t(), grad).t().contiguous()
    return matmul(grad.t(), x)


def _product(grad: Tensor, slices: list[tuple[slice, Tensor]]) -> Tensor:
    """Sum over the slices of grad[rows]^T h."""
    (rows, h), *rest = slices
    total = rows_product(grad[rows], h)
    for rows, h in rest:
        total += rows_product(grad[rows], h)
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
    hidden_size = output.shape[-1]
    slices = _slices(h_0, output, lengths, batch_sizes, reset, reverse)
    grad = grad_gates_x.flatten(0, -2)
    if spec.separate_hidden:  # the n columns see r * (U_n h + b_n)
        grad_n, slices_n = grad_gates_h.flatten(0, -2), slices
    elif not spec.pointwise:  # the n columns multiply r * h
        r = saved.flatten(0, -2)[:, :hidden_size]
        grad_n = grad[:, 2 * hidden_size :]
        slices_n = [(rows, r[rows] * h) for rows, h in slices]
    else:
        return _product(grad, slices)
    return torch.cat((_product(grad[:, : 2 * hidden_size], slices), _product(grad_n, slices_n)))


def bias_grads(spec: CellSpec, grad_gates_x: Tensor, grad_gates_h: Tensor) -> tuple[Tensor, Tensor]:
    """(grad_bias_ih, grad_bias_hh), each [G*H]."""
    grad_ih = grad_gates_x.flatten(0, -2).sum(0)
    if not spec.separate_hidden:
        return grad_ih, grad_ih.clone()
    grad_hn = grad_gates_h.flatten(0, -2).sum(0)
    return grad_ih, torch.cat((grad_ih[: -grad_hn.shape[0]], grad_hn))
