"""LSTM with projected hidden state (Sak et al. 2014), composed from the plain LSTM.

The layer computes h = weight_hr m with m = o tanh(c), and feeds h to the next step, where only
weight_hh h is needed. Since weight_hh (weight_hr m) = (weight_hh weight_hr) m, the recurrence over
m is a plain LSTM with the recurrent weights weight_hh weight_hr, [4H, H], which every backend can
run; the projection becomes one product over the whole sequence. An initial h_0 is not a projected
m, so it enters as additional input columns, zero everywhere but at the first step of each row.

A step costs 4HH products where the projected recurrence has 4HP + PH: the composition gives up the
saving of a small P and gains a fused sequence.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import arguments, functional, modes
from ..ops.packed import batch_sizes_on, last_places


def sequence(
    cell: str,
    x: Tensor,
    state: tuple[Tensor | None, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor,
    *,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    return_c_sequence: bool,
    backend: str | None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
    """Run one projected LSTM layer in one direction.

    Arguments and results are those of `functional.sequence`, except for: state, (h_0 [N, P] or None
    for zeros, c_0 [N, H]); weight_hh, [4H, P]; weight_hr, [P, H]; output and h_n, P wide.
    """
    h_0, c_0 = state
    wide = modes.wide_results(cell, c_0, True)
    # fmt: off
    x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = modes.autocast(
        x.device.type, (x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
    )
    # fmt: on
    rows, hidden_size = c_0.shape
    proj_size = weight_hr.shape[0]
    arguments.same("weight_ih", weight_ih, (4 * hidden_size, x.shape[-1]), x)
    arguments.same("weight_hr", weight_hr, (proj_size, hidden_size), x)
    arguments.same("weight_hh", weight_hh, (4 * hidden_size, proj_size), x)
    arguments.check_layout(x, rows, lengths, batch_sizes, reset)
    if h_0 is not None:
        arguments.same("h", h_0, (rows, proj_size), x)
        x = torch.cat((x, _at_first_step(h_0, x, lengths, batch_sizes, reset, reverse)), -1)
        weight_ih = torch.cat((weight_ih, weight_hh), -1)
    output, (m_n, c_n), c_sequence = functional.sequence(
        cell,
        x,
        (torch.zeros_like(c_0), c_0),
        weight_ih,
        weight_hh @ weight_hr,
        bias_ih,
        bias_hh,
        lengths=lengths,
        batch_sizes=batch_sizes,
        reset=reset,
        reverse=reverse,
        return_c_sequence=return_c_sequence,
        backend=backend,
    )
    h_n = F.linear(m_n, weight_hr)
    if h_0 is not None and lengths is not None:
        # A row without steps keeps its state.
        h_n = torch.where((lengths > 0).unsqueeze(-1), h_n, h_0)
    if wide is not None:  # torch.nn projects in autocast's dtype and keeps c in its own
        c_n, c_sequence = c_n.to(wide), None if c_sequence is None else c_sequence.to(wide)
    return F.linear(output, weight_hr), (h_n, c_n), c_sequence


def _at_first_step(
    h_0: Tensor,
    x: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> Tensor:
    """h_0 [N, P] at the step each row begins with, zeros elsewhere: [T, N, P], packed [sum, P]."""
    if batch_sizes is not None:
        if not reverse:
            return F.pad(h_0, (0, 0, 0, x.size(0) - h_0.size(0)))
        sizes = batch_sizes_on(batch_sizes, h_0.size(0), x.size(0), x.device)
        zeros = h_0.new_zeros(x.size(0), h_0.size(1))
        return zeros.index_copy(0, last_places(sizes, h_0.size(0)), h_0)
    steps = x.size(0)
    at = torch.arange(steps, device=x.device).unsqueeze(1)
    if not reverse:
        first = at == 0
    elif lengths is None:
        first = at == steps - 1
    else:
        first = at == lengths.clamp(max=steps) - 1
    if reset is not None and not reverse:
        first = first & ~reset
    return torch.where(first.unsqueeze(-1), h_0, torch.zeros_like(h_0))
