"""`torch.compile` of the reference recurrence, as one would write it by hand.

One step is compiled and called in a Python loop: compiling a loop of hundreds of steps takes
minutes. A layer projects its whole input before the loop; a cell and a decoder cannot.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqkernels import reference
from seqkernels.cells import CELLS

from .contestants import Prepared, Refused
from .workload import Model, Workload

State = tuple[Tensor, ...]


def build(work: Workload, mode: str) -> Prepared:
    """The compiled loop of a workload.

    Raises:
        Refused: the case has a projection.
    """
    case = work.case
    if case.proj_size:
        raise Refused("the compiled loop has no proj_size")
    loop, step = {
        "sequence": (_sequence, layer_step),
        "cell": (_cells, cell_step),
        "decode": (_decode, decode_step),
    }[case.kind]
    # Past eight shapes of one function torch would quietly run it uncompiled.
    torch.compiler.reset()
    _empty_cache()
    step, model = torch.compile(step, dynamic=False), work.model(torch.nn)

    def forward(work: Workload):
        return loop(work, model, step)

    forward.parameters = model.parameters
    names = tuple(name for name, _ in model.named_parameters())
    return Prepared(work.call(forward, mode), names)


@cache
def _empty_cache() -> tempfile.TemporaryDirectory:
    """A folder in which this process's first calls do not find what an earlier run compiled."""
    folder = tempfile.TemporaryDirectory(prefix="seqkernels-compiled-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    return folder


def layer_step(
    cell: str,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    state: State,
    alive: Tensor | None,
) -> tuple[Tensor, State]:
    """Output and state of a step; rows that are not `alive` [N, 1] keep theirs and give zeros."""
    new = reference.step(cell, gates_x, weight_hh, bias_hh, state)
    if alive is None:
        return new[0], new
    new = tuple(torch.where(alive, n, old) for n, old in zip(new, state, strict=True))
    return torch.where(alive, new[0], 0), new


def cell_step(cell: str, x: Tensor, weights: tuple[Tensor, ...], state: State) -> State:
    """One step of a cell on its input [N, I]; weights as torch.nn names them, in its order."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    return reference.step(cell, F.linear(x, weight_ih, bias_ih), weight_hh, bias_hh, state)


def decode_step(
    cell: str,
    token: Tensor,
    states: tuple[State, ...],
    embedding: Tensor,
    layers: tuple[tuple[Tensor, ...], ...],
    projection: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, tuple[State, ...]]:
    """Logits [N, V], the next tokens [N] and states of a greedy step."""
    h, new = F.embedding(token, embedding), []
    for weights, state in zip(layers, states, strict=True):
        new.append(cell_step(cell, h, weights, state))
        h = new[-1][0]
    logits = F.linear(h, *projection)
    return logits, logits.argmax(-1), tuple(new)


def _zeros(work: Workload, like: Tensor) -> State:
    zeros = like.new_zeros(work.case.batch, work.case.hidden_size)
    return (zeros,) * CELLS[work.case.cell].states


def _weights(layer: torch.nn.Module, suffix: str = "") -> tuple[Tensor, ...]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return tuple(getattr(layer, name + suffix) for name in names)


def _sequence(work: Workload, model: Model, step: Callable):
    """Every layer and direction; packed rows are padded before and packed again after."""
    case, x, alive = work.case, work.x, None
    if case.rows == "packed":
        x, _ = pad_packed_sequence(x, total_length=work.length)
    if work.lengths is not None:
        times = torch.arange(work.length, device=work.device).unsqueeze(-1)
        alive = (times < work.lengths).unsqueeze(-1).unbind(0)
    finals = []
    for number in range(case.num_layers):
        outputs = []
        for direction in range(1 + case.bidirectional):
            weights = _weights(model.layers[0], f"_l{number}{'_reverse' * direction}")
            output, state = _direction(work, x, weights, step, alive, bool(direction))
            outputs.append(output)
            finals.append(state)
        x = torch.cat(outputs, -1) if case.bidirectional else outputs[0]
    state = tuple(torch.stack(states) for states in zip(*finals, strict=True))
    return pack_padded_sequence(x, work.lengths_host) if case.rows == "packed" else x, state


def _direction(
    work: Workload,
    x: Tensor,
    weights: tuple[Tensor, ...],
    step: Callable,
    alive: tuple[Tensor, ...] | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    """One direction of one layer over x [T, N, I]."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    gates_x = F.linear(x, weight_ih, bias_ih).unbind(0)
    state, outputs = _zeros(work, x), []
    for t in reversed(range(work.length)) if reverse else range(work.length):
        row = None if alive is None else alive[t]
        output, state = step(work.case.cell, gates_x[t], weight_hh, bias_hh, state, row)
        outputs.append(output)
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _cells(work: Workload, model: Model, step: Callable):
    weights, state, outputs = _weights(model.layers[0]), _zeros(work, work.x), []
    for x in work.x.unbind(0):
        state = step(work.case.cell, x, weights, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _decode(work: Workload, model: Model, step: Callable):
    embedding, projection = model.embedding.weight, model.projection
    layers = tuple(_weights(layer) for layer in model.layers)
    states = (_zeros(work, embedding),) * work.case.num_layers
    ends = (projection.weight, projection.bias)
    token, logits, tokens = work.x, [], []
    for _ in range(work.length):
        scores, token, states = step(work.case.cell, token, states, embedding, layers, ends)
        logits.append(scores)
        tokens.append(token)
    return logits, tokens
