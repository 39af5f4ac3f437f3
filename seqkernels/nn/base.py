"""What LSTM, GRU and RNN share: parameters, and how arguments of every layout reach the stack.

What is shared stands in functions of a module, not in methods: a class that derives from a layer
may give its own attributes any name but `torch.nn`'s.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells import CELLS
from . import checks, stack, tools
from .stack import Layout, Stack, State


class RecurrentLayer(nn.RNNBase):
    """A stack of recurrent layers with the parameters, names and initial values of `torch.nn`.

    It derives from `torch.nn.RNNBase`, not from LSTM, GRU or RNN: `torch.compile` refuses instances
    of those three. The base class keeps a list of its weights beside the parameters, and weak
    references to them. Both get in the way of parametrisations, deepcopy and swapped parameters,
    and no kernel here needs a flat buffer, so weights are read where they are at every call.
    """

    def flatten_parameters(self) -> None:
        """Do nothing; kept because callers of `torch.nn` layers call it."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def _init_flat_weights(self) -> None: ...

    def _update_flat_weights(self) -> None: ...

    # The base class's versions of these four exist to keep its list of weights up to date.
    __setattr__ = tools.set_attribute
    __setstate__ = nn.Module.__setstate__
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def recurrence(layer: nn.RNNBase) -> str:
    """The name of a layer's recurrence, a key of `seqkernels.cells.CELLS`."""
    if getattr(layer, "_seqkernels_reset", "after") == "before":
        return "gru_reset_before"
    return layer.mode.lower()


def layer_weights(layer: RecurrentLayer, index: int) -> list[Tensor]:
    """weight_ih, weight_hh and, where there are any, bias_ih, bias_hh, weight_hr of a layer.

    They are as the recurrence takes them: see `as_recurrence_has`. A parameter is found faster in
    its dictionary than as an attribute; one that is parametrised or replaced by a plain tensor is
    an attribute only.
    """
    parameters = layer._parameters
    weights = [
        parameters[name] if name in parameters else getattr(layer, name)
        for name in layer._all_weights[index]
    ]
    return as_recurrence_has(layer, weights)


def run(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_c_sequence: bool = False,
) -> tuple[Tensor | PackedSequence, State, Tensor | PackedSequence | None]:
    """Check a layer's arguments, bring them to [T, N, I], run, and give results the input's layout.

    Returns:
        The output, the final state and, if it was asked for, the c sequence of the last layer.
    """
    cell = recurrence(layer)
    if hx is None:
        state = None
    elif CELLS[cell].states > 1:
        checks.two_states(hx)
        state = tuple(hx)
    else:
        state = (hx,)
    if isinstance(input, PackedSequence):
        if lengths is not None or reset is not None:
            name = "lengths" if lengths is not None else "reset"
            raise ValueError(f"{name} goes with a padded input, not with a PackedSequence")
        return _run_packed(layer, cell, input, state, return_c_sequence)

    dims = input.dim()
    batch_first = layer.batch_first
    if dims == 3:
        x = input.transpose(0, 1) if batch_first else input
    elif dims == 2:
        x = input.unsqueeze(1)
    else:
        raise ValueError(
            f"{type(layer).__name__}: Expected input to be 2D or 3D, got {dims}D instead"
        )
    if state is not None:
        checks.state_dims(state, dims)
        if dims == 2:
            state = tuple(s.unsqueeze(1) for s in state)
    own = _checked(layer, cell, x, state, x.size(1), packed=False)
    if lengths is not None:
        checks.lengths(lengths, x, dims)
        lengths = lengths.to(torch.int64)
        if torch.is_grad_enabled():
            # The weights' gradient multiplies the padding by zeros, which NaN would survive.
            steps = torch.arange(x.size(0), device=x.device).unsqueeze(-1)
            x = x.masked_fill((steps >= lengths).unsqueeze(-1), 0)
    if reset is not None:
        checks.reset(reset, input)
        if dims == 2:
            reset = reset.unsqueeze(1)
        elif batch_first:
            reset = reset.transpose(0, 1)

    layout = Layout(lengths=lengths, reset=reset)
    output, state, c_sequence = stack.run(own, x, state, layout, return_c_sequence)

    if dims == 2:
        output = output.squeeze(1)
        state = tuple(s.squeeze(1) for s in state)
        if c_sequence is not None:
            c_sequence = c_sequence.squeeze(1)
    elif batch_first:
        output = output.transpose(0, 1)
        if c_sequence is not None:
            c_sequence = c_sequence.transpose(0, 1)
    return output, state, c_sequence


def _run_packed(
    layer: RecurrentLayer,
    cell: str,
    input: PackedSequence,
    state: State | None,
    return_c_sequence: bool,
) -> tuple[PackedSequence, State, PackedSequence | None]:
    """As `run`, for a packed sequence, whose rows are sorted by length."""
    x, batch_sizes, sorted_indices, unsorted_indices = input
    own = _checked(layer, cell, x, state, int(batch_sizes[0]), packed=True)
    if state is not None and sorted_indices is not None:
        state = tuple(s.index_select(1, sorted_indices) for s in state)
    layout = Layout(batch_sizes=batch_sizes)
    output, state, c_sequence = stack.run(own, x, state, layout, return_c_sequence)
    if unsorted_indices is not None:
        state = tuple(s.index_select(1, unsorted_indices) for s in state)
    order = (batch_sizes, sorted_indices, unsorted_indices)
    if c_sequence is not None:
        c_sequence = PackedSequence(c_sequence, *order)
    return PackedSequence(output, *order), state, c_sequence


def _checked(
    layer: RecurrentLayer, cell: str, x: Tensor, state: State | None, batch_size: int, packed: bool
) -> Stack:
    """What `layer` computes, after a check of x [T, N, I] or [sum, I] and state.

    Weights are checked where they are used: see `functional`.
    """
    count = len(layer._all_weights)
    weights = [layer_weights(layer, index) for index in range(count)]
    hidden_size = layer.hidden_size
    checks.layer_input(x, layer.input_size, weights[0][0], packed)
    if state is not None:
        expected = [(count, batch_size, layer.proj_size or hidden_size)]
        if len(state) == 2:
            expected.append((count, batch_size, hidden_size))
        checks.layer_state(state, x, expected)
    if not layer.bias:
        for own in weights:
            own[2:2] = (None, None)
    directions = 2 if layer.bidirectional else 1
    dropout = layer.dropout if layer.training else 0.0
    return Stack(cell, hidden_size, weights, directions, dropout)


def as_recurrence_has(module: nn.Module, weights: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Weights and biases of a layer or cell as the recurrence takes them.

    In a GRU with update="replace" the rows of z, of gates r, z, n, are negated: sigmoid(-a) is
    1 - sigmoid(a), so the gate then replaces the state where it kept it.
    """
    if getattr(module, "_seqkernels_update", "keep") == "keep":
        return weights
    n = module.hidden_size
    return [None if t is None else torch.cat((t[:n], -t[n : 2 * n], t[2 * n :])) for t in weights]
