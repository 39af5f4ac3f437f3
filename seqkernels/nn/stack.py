"""The loop over layers and directions, on checked input: what a layer module computes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import arguments, dispatch, functional
from ..cells import CELLS
from . import projection

State = tuple[Tensor, ...]  # (h,) or (h, c)


class Stack(NamedTuple):
    """A stack of recurrent layers: its arithmetic, without a module around it.

    Attributes:
        cell: a key of `seqkernels.cells.CELLS`.
        hidden_size: H.
        weights: of every layer, and in a layer of every direction, weight_ih, weight_hh, bias_ih,
            bias_hh (None where there are no biases) and, where the state is projected, weight_hr.
        directions: 1 or 2.
        dropout: probability of zeroing an output between layers; 0 outside training.
    """

    cell: str
    hidden_size: int
    weights: list[list[Tensor | None]]
    directions: int
    dropout: float


class Layout(NamedTuple):
    """How the rows of an input lie; see `functional.sequence`."""

    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    reset: Tensor | None = None


def run(
    stack: Stack, x: Tensor, state: State | None, layout: Layout, return_c_sequence: bool = False
) -> tuple[Tensor, State, Tensor | None]:
    """Run every layer and direction over x.

    Args:
        stack: the layers.
        x: input, [T, N, I]; packed, [sum(batch_sizes), I].
        state: initial (h,) or (h, c), each [D * L, N, .]; None stands for zeros.
        layout: how the rows of x lie.
        return_c_sequence: also return the cell state of the last layer after every step.

    Returns:
        The output, [T, N, D * (P or H)] or packed; the final state, shaped as `state`; and the cell
        states of the last layer, or None.
    """
    cell, hidden_size, weights, directions, dropout = stack
    count = len(weights)
    projected = len(weights[0]) == 5
    two = CELLS[cell].states > 1
    if layout.batch_sizes is None and x.size(0) == 0:
        return _no_steps(stack, x, state, layout.lengths, return_c_sequence)
    if state is None:
        batch_size = x.size(1) if layout.batch_sizes is None else int(layout.batch_sizes[0])
        zeros = x.new_zeros(batch_size, hidden_size)
        states = [(None if projected else zeros, zeros)[: 2 if two else 1]] * count
    else:
        states = [tuple(s[index] for s in state) for index in range(count)]
    options = {**layout._asdict(), "backend": None}

    def joined(x: Tensor, parts: slice, wanted: bool):
        """Several parts in one launch, or why not; see functional.joined."""
        if state is None:
            own = tuple(s.expand(len(weights[parts]), -1, -1) for s in states[0])
        else:
            own = tuple(s[parts] for s in state)
        return functional.joined(
            cell, x, own, weights[parts], directions == 1, return_c_sequence=wanted, **options
        )

    may_join = count > 1 and not projected and dispatch.may_join(x.device)
    found = None
    if may_join and directions == 1 and not dropout:
        found = joined(x, slice(0, count), return_c_sequence)
        if not isinstance(found, str):
            return found
    final: list[State] = []
    for first in range(0, count, directions):
        last = first + directions == count
        parts = slice(first, first + directions)
        wanted = return_c_sequence and last
        if may_join and directions == 2:
            found = joined(x, parts, wanted)
        if found is None or isinstance(found, str):
            x, ends, c_sequence = _run_apart(
                cell, x, states[parts], weights[parts], wanted, found, options
            )
        else:
            x, ends, c_sequence = found
            ends = zip(*(end.unbind() for end in ends), strict=True)
        final.extend(ends)
        if dropout and not last:
            x = F.dropout(x, dropout)
    if len(final) == 1:
        return x, tuple(s.unsqueeze(0) for s in final[0]), c_sequence
    return x, tuple(torch.stack(tensors) for tensors in zip(*final, strict=True)), c_sequence


def _no_steps(
    stack: Stack,
    x: Tensor,
    state: State | None,
    lengths: Tensor | None,
    return_c_sequence: bool,
) -> tuple[Tensor, State, Tensor | None]:
    """What `run` returns for a sequence of no steps: no output, and the initial state."""
    arguments.check_lengths(lengths, 0)
    rows, width = x.size(1), stack.weights[0][1].size(1)  # P or H
    widths = (width, stack.hidden_size)[: CELLS[stack.cell].states]
    if state is None:
        final = tuple(x.new_zeros(len(stack.weights), rows, w) for w in widths)
    else:
        final = tuple(s.clone() for s in state)
    output, *c = (x.new_empty(0, rows, stack.directions * w) for w in widths)
    return output, final, c[0] if return_c_sequence else None


def _run_apart(
    cell: str,
    x: Tensor,
    states: list[State],
    weights: list[list[Tensor | None]],
    return_c_sequence: bool,
    reason: str | None,
    options: dict[str, Any],
) -> tuple[Tensor, list[State], Tensor | None]:
    """Run one layer, each direction by itself: output, final states, c sequence or None."""
    sequence = functional.sequence
    if len(weights[0]) == 5:
        sequence = projection.sequence
    elif reason is not None:
        options = {**options, "apart": reason}
    results = [
        sequence(
            cell,
            x,
            state,
            *own,
            reverse=direction == 1,
            return_c_sequence=return_c_sequence,
            **options,
        )
        for direction, (state, own) in enumerate(zip(states, weights, strict=True))
    ]
    outputs, ends, c_sequences = zip(*results, strict=True)
    if len(results) == 1:
        return outputs[0], list(ends), c_sequences[0]
    c_sequence = torch.cat(c_sequences, -1) if return_c_sequence else None
    return torch.cat(outputs, -1), list(ends), c_sequence
