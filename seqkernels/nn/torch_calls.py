"""The recurrent functions of `torch._VF`, which `torch.nn` calls, computed by this package.

Each answers None where torch's own function is to be called: what does not fit together raises
torch's error there, and what this package has no kernel for is computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .. import _extension, dispatch, functional, modes
from ..backend import DTYPES
from ..cells import CELLS
from .stack import Layout, Stack, run

# What a tensor of another class does with an operation is for torch's own function to ask.
_ORDINARY = (Tensor, nn.Parameter, FakeTensor)


def layer(cell: str, x: Tensor, *args) -> tuple[Tensor, ...] | None:
    """What `torch._VF.<cell>` returns for its arguments, or None.

    Args:
        cell: a key of `CELLS`.
        x: padded input [T, N, I] or [N, T, I], or the data of a packed one.
        args: hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first; of a
            packed input batch_sizes, hx, weights, has_biases and so on to bidirectional.

    Returns:
        The output and the final state, each tensor for itself.
    """
    if len(args) != 8 or modes.captured():
        return None
    batch_sizes, batch_first = None, False
    if isinstance(args[2], list | tuple):  # packed: the list of weights comes one place later
        batch_sizes, hx, flat, biases, layers, dropout, training, both = args
    else:
        hx, flat, biases, layers, dropout, training, both, batch_first = args
    state = _state(cell, hx)
    if state is None or not _fit(x, (*state, *flat)):
        return None
    shape, last = x.shape, state[-1].shape
    if len(last) != 3 or len(shape) != (3 if batch_sizes is None else 2) or 0 in shape:
        return None
    if batch_sizes is None:
        rows = shape[0 if batch_first else 1]
    elif type(batch_sizes) in _ORDINARY and batch_sizes.is_cpu and batch_sizes.dim() == 1:
        rows = last[1]  # as LSTM.forward has checked; batch_sizes are not read here
    else:
        return None
    directions = 2 if both else 1
    count = layers * directions
    first, hidden_size = state[0].shape, last[2]
    if last != (count, rows, hidden_size) or len(first) != 3 or first[:2] != last[:2]:
        return None
    out = first[2]
    weights = _weights(cell, flat, biases, shape[-1], out, hidden_size, count, directions)
    if weights is None or not _has_kernels(cell, x, rows, hidden_size):
        return None
    stack = Stack(cell, hidden_size, weights, directions, dropout if training else 0.0)
    if batch_first:
        x = x.transpose(0, 1)
    output, state, _ = run(stack, x, state, Layout(batch_sizes=batch_sizes))
    return (output.transpose(0, 1) if batch_first else output, *state)


def step(cell: str, x: Tensor, hx, *weights) -> tuple[Tensor, Tensor] | Tensor | None:
    """What `torch._VF.<cell>_cell` returns for its arguments, or None.

    Args:
        cell: a key of `CELLS`.
        x: input, [N, I].
        hx: h, or (h, c), each [N, H].
        weights: weight_ih, weight_hh, bias_ih, bias_hh.
    """
    state = _state(cell, hx)
    if state is None or len(weights) != 4 or modes.captured():
        return None
    weight_ih, weight_hh, *biases = weights
    if biases[0] is None and biases[1] is None:
        biases = ()
    if not _fit(x, (*state, weight_ih, weight_hh, *biases)):
        return None
    shape, last = x.shape, state[-1].shape
    if len(shape) != 2 or len(last) != 2 or 0 in shape:
        return None
    hidden_size = last[1]
    rows = CELLS[cell].gates * hidden_size
    if last[0] != shape[0] or len(state) == 2 and state[0].shape != last:
        return None
    if weight_ih.shape != (rows, shape[1]) or weight_hh.shape != (rows, hidden_size):
        return None
    for bias in biases:
        if bias.shape != (rows,):
            return None
    if not _has_kernels(cell, x, shape[0], hidden_size):
        return None
    state = functional.cell(cell, x, state, *weights)
    return state if len(state) == 2 else state[0]


def _state(cell: str, hx: object) -> tuple | None:
    """(h,) or (h, c) of torch's argument hx; None if it is not that."""
    if CELLS[cell].states == 1:
        return (hx,)
    return tuple(hx) if isinstance(hx, list | tuple) and len(hx) == 2 else None


def _fit(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether x and others are ordinary tensors of one device and, after autocast, one dtype."""
    if type(x) not in _ORDINARY or x.dtype not in DTYPES or x.layout != torch.strided:
        return False
    device, dtype = x.device, x.dtype
    if device.type not in ("cpu", "cuda"):
        return False
    cast = dtype in modes.CAST and modes.autocasts(device.type)
    for t in others:
        if type(t) not in _ORDINARY or t.device != device:
            return False
        if t.dtype != dtype and not (cast and t.dtype in modes.CAST):
            return False
    return True


def _weights(
    cell: str,
    flat: Sequence[Tensor],
    biases: bool,
    features: int,
    out: int,
    hidden_size: int,
    count: int,
    directions: int,
) -> list[list[Tensor | None]] | None:
    """The list of all weights that torch keeps, as `Stack` has them; None if they do not fit.

    Args:
        cell: a key of `CELLS`.
        flat: of every layer and direction weight_ih, weight_hh, with biases bias_ih and bias_hh,
            with a projection weight_hr.
        biases: whether there are biases.
        features: I.
        out: P, or H without a projection.
        hidden_size: H.
        count: D * L.
        directions: D.
    """
    rows, width = CELLS[cell].gates * hidden_size, len(flat) // count
    projected = cell == "lstm" and width == (5 if biases else 3)
    if out != hidden_size and not projected:
        return None
    sizes, weights = [], []
    for index in range(count):
        own = list(flat[index * width : (index + 1) * width])
        sizes += [(rows, features if index < directions else directions * out), (rows, out)]
        sizes += [(rows,), (rows,)] if biases else []
        sizes += [(out, hidden_size)] if projected else []
        if not biases:
            own[2:2] = (None, None)
        weights.append(own)
    return weights if [t.shape for t in flat] == sizes else None


def _has_kernels(cell: str, x: Tensor, rows: int, hidden_size: int) -> bool:
    """Whether this package has more than the plain PyTorch recurrence for such a call."""
    if dispatch.selected() is not None:
        return True  # The user has named a backend: it runs, or says why it cannot.
    if x.is_cpu:
        return _extension.C is not None
    call = dispatch.Call(cell, x.device, x.dtype, 1, rows, hidden_size, x.shape[-1])
    # Those that run most stand last.
    return any(b.devices and dispatch.refusal(b, call) is None for b in reversed(dispatch.BACKENDS))
