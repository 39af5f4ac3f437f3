"""Plain, differentiable PyTorch recurrences: the specification of every kernel and its oracle.

Written to be read and to be differentiated to any order in any mode (reverse, forward, vmap), not
to be fast. Every backend is tested against this file in float64. Imports torch and the cells alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .cells import CELLS, CellSpec

State = tuple[Tensor, ...]  # h and the cell's other states, each [N, H]


def lstm_step(gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """One LSTM step, as `torch.nn.LSTMCell` defines it; gates i, f, g, o, each [N, 4H]."""
    _, c = state
    i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """One GRU step, as `torch.nn.GRUCell` defines it; gates r, z, n, each [N, 3H]."""
    (h,) = state
    x_r, x_z, x_n = gates_x.chunk(3, dim=-1)
    h_r, h_z, h_n = gates_h.chunk(3, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)


def gru_reset_before_step(
    gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, state: State
) -> State:
    """One GRU step with the reset gate before the product (Cho et al. 2014, equations 5 to 8).

    h' = z h + (1 - z) tanh(W x + U (r h) + b); gates r, z, n.
    """
    (h,) = state
    hidden_size = h.shape[-1]
    bias = (None, None) if bias_hh is None else bias_hh.split((2 * hidden_size, hidden_size))
    weight_rz, weight_n = weight_hh.split((2 * hidden_size, hidden_size))
    x_rz, x_n = gates_x.split((2 * hidden_size, hidden_size), dim=-1)
    r, z = torch.sigmoid(x_rz + F.linear(h, weight_rz, bias[0])).chunk(2, dim=-1)
    n = torch.tanh(x_n + F.linear(r * h, weight_n, bias[1]))
    return (n + z * (h - n),)


def rnn_tanh_step(gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """One Elman step with tanh, as `torch.nn.RNNCell` defines it; [N, H]."""
    return (torch.tanh(gates_x + gates_h),)


def rnn_relu_step(gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """One Elman step with relu; [N, H]."""
    return (torch.relu(gates_x + gates_h),)


# Of a cell with one product: (gates_x, gates_h, state) or, with parameters, (gates_x, gates_h,
# state, parameters), each of these [H].
STEPS: dict[str, Callable[..., State]] = {
    "lstm": lstm_step,
    "gru": gru_step,
    "rnn_tanh": rnn_tanh_step,
    "rnn_relu": rnn_relu_step,
}
# Of a cell whose step has several products: (gates_x, weight_hh, bias_hh, state), with the
# parameters behind the biases.
WHOLE_STEPS: dict[str, Callable[..., State]] = {"gru_reset_before": gru_reset_before_step}


def cell(name: str, gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """One pointwise step of the named cell: gates_x, gates_h [N, G*H], state [N, H] each."""
    return STEPS[name](gates_x, gates_h, state)


def step(
    name: str, gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, state: State
) -> State:
    """One step of any cell, recurrent product included.

    Raises:
        KeyError: a cell from outside the package has no step in `STEPS` or `WHOLE_STEPS`.
    """
    spec = CELLS[name]
    if name in WHOLE_STEPS:
        return WHOLE_STEPS[name](gates_x, weight_hh, bias_hh, state)
    if name not in STEPS:
        raise KeyError(f"{name} has no reference step: add one to seqkernels.reference.STEPS")
    if spec.parameters == 0:
        return STEPS[name](gates_x, F.linear(state[0], weight_hh, bias_hh), state)
    bias_hh, parameters = bias_hh.tensor_split([weight_hh.shape[0]])
    gates_h = F.linear(state[0], weight_hh, bias_hh)
    return STEPS[name](gates_x, gates_h, state, parameters.chunk(spec.parameters))


def split_state(spec: CellSpec, h: Tensor, c: Tensor | None) -> State:
    """The states of a cell, each [..., H], from h and the others side by side, as in ops."""
    return (h,) if c is None else (h, *c.chunk(spec.states - 1, -1))


def others(state: Sequence[Tensor]) -> Tensor | None:
    """The states beside h, side by side; None where there are none."""
    return torch.cat(tuple(state[1:]), -1) if len(state) > 1 else None


def sequence(
    name: str,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    state: Sequence[Tensor],
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State, Tensor | None]:
    """Run one direction of one layer over a padded sequence.

    Args:
        name: a key of `CELLS`.
        gates_x: input pre-activations weight_ih x + bias_ih, [T, N, G*H].
        weight_hh: recurrent weights, [G*H, H].
        bias_hh: recurrent bias, [G*H], or None; followed by the cell's parameters if it has any.
        state: initial h and other states, each [N, H].
        lengths: steps of each row, [N]; a row past its end keeps its state and gives zeros.
        reset: where true, the state is zeroed before that step is taken, [T, N].
        reverse: take each row's steps from its last to its first.

    Returns:
        The hidden state after every step, [T, N, H]; the final state, each [N, H]; and the other
        states after every step side by side, [T, N, (states - 1) * H], None where there are none.
    """
    state = tuple(state)
    steps = range(gates_x.shape[0])
    if not steps:
        nothing = gates_x.new_empty(0, *state[0].shape)
        return nothing, state, others([nothing] * len(state))
    outputs: list[Tensor] = []
    c_outputs: list[Tensor | None] = []
    for t in reversed(steps) if reverse else steps:
        old_state = state
        if reset is not None:
            keep = ~reset[t].unsqueeze(-1)
            state = tuple(torch.where(keep, s, torch.zeros_like(s)) for s in state)
        new_state = step(name, gates_x[t], weight_hh, bias_hh, state)
        emitted = new_state
        if lengths is not None:
            # Past its end a row keeps its state: reset counts only where a step is taken.
            alive = (t < lengths).unsqueeze(-1)
            new_state = tuple(
                torch.where(alive, new, old) for new, old in zip(new_state, old_state, strict=True)
            )
            emitted = tuple(torch.where(alive, s, torch.zeros_like(s)) for s in new_state)
        state = new_state
        outputs.append(emitted[0])
        c_outputs.append(others(emitted))
    if reverse:
        outputs.reverse()
        c_outputs.reverse()
    c_sequence = torch.stack(c_outputs) if len(state) > 1 else None
    return torch.stack(outputs), state, c_sequence
