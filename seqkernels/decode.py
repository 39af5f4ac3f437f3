"""Greedy decoding in one op: embedding, stacked cells, projection, arg-max and feedback.

A loop over torch's cells pays for a dozen calls per token; the fused op pays once for all tokens.
The schema and its shapes stand in csrc/decode_ops.cpp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension, decode_graph, dispatch
from .cells import CELLS, CellSpec
from .ops.registry import LIBRARY, NAMESPACE, absent, get, same_device

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_STEPS: dict[str, Callable] = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


class DecodeResult(NamedTuple):
    """What greedy decoding found for each of N rows.

    Attributes:
        tokens: the chosen tokens, eos included, then padding; int64, [N, max_length].
        lengths: how many of them a row has chosen; int64, [N].
        log_probs: sum of their log-probabilities, float64 for float64 weights, else float32, [N];
            None if they were not asked for.
        state: (h,) or (h, c) from which the last token of each row was chosen, each [L, N, H].
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor | None
    state: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """Checked arguments, as the op wants them."""

    cell: str
    embedding: Tensor
    layers: tuple[Layer, ...]
    projection: tuple[Tensor, Tensor | None]
    state: tuple[Tensor, ...]
    start: Tensor
    max_length: int
    eos: int
    pad: int
    scores: bool

    def tensors(self) -> list[Tensor]:
        found = [self.embedding, *self.projection, *self.state]
        for layer in self.layers:
            found.extend(layer)
        return [t for t in found if t is not None]


def greedy(
    cell: str,
    embedding: Tensor,
    layers: Sequence[Layer],
    projection: tuple[Tensor, Tensor | None],
    state: tuple[Tensor, ...],
    start: Tensor | int,
    *,
    max_length: int,
    eos: int | None = None,
    pad: int | None = None,
    log_probs: bool = False,
    backend: str | None = None,
) -> DecodeResult:
    """Write the most probable next token, feed it back, and so on.

    The tokens are those of a loop over torch's cells, `torch.argmax` taking the first of equals.

    Args:
        cell: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        embedding: a vector for every token, [V', E].
        layers: (weight_ih, weight_hh, bias_ih, bias_hh) of every layer of the stack, as torch.nn
            has them: [G*H, E] or [G*H, H] above the first, [G*H, H], [G*H] or None, [G*H] or None.
        projection: weight and bias that score the V <= V' tokens, [V, H] and [V] or None.
        state: (h,) or (h, c) before the first step, each [L, N, H].
        start: the token that is read first, for all rows or one for each, int64, [N]. On a GPU its
            values are not checked; one outside the embedding is taken as the nearest one inside, or
            stops the device as torch's embedding does.
        max_length: how many tokens a row may write.
        eos: the token that ends a row; None for rows that only end at max_length.
        pad: what stands after a row's end; by default eos, or 0 without one.
        log_probs: also sum the log-probabilities of the tokens.
        backend: `native` (CPU), `persistent` or `graph` (CUDA), `reference` (a loop over torch's
            cells); by default the first that can run.

    Returns:
        Tokens, lengths, log-probabilities and the final state.

    Raises:
        ValueError: sizes or types do not fit together, or a token is outside the vocabulary; the
            message names both.
        RuntimeError: gradients are required, or the named backend cannot run this call.
    """
    spec = _spec(cell)
    rows = state[0].shape[1] if state and state[0].dim() == 3 else -1
    if isinstance(start, int):
        start = torch.full((max(rows, 0),), start, dtype=torch.int64, device=embedding.device)
    eos_or_none = -1 if eos is None else eos
    pad = (0 if eos is None else eos) if pad is None else pad
    call = _Call(
        cell,
        embedding,
        tuple((*layer, None, None)[:4] for layer in layers),
        (*projection, None)[:2],
        tuple(state),
        start,
        max_length,
        eos_or_none,
        pad,
        log_probs,
    )
    _check(call, spec, eos)
    if torch.is_grad_enabled() and any(t.requires_grad for t in call.tensors()):
        raise RuntimeError(
            "greedy decoding has no gradient: call it under torch.no_grad() or inference_mode()"
        )
    return dispatch.again_if_refused(lambda: _choose(call, backend).run(call, spec))


def _spec(cell: str) -> CellSpec:
    if cell not in _STEPS:
        raise ValueError(f"greedy decoding knows the cells {', '.join(_STEPS)}, not {cell!r}")
    return CELLS[cell]


def _check(call: _Call, spec: CellSpec, eos: int | None) -> None:
    """Raise ValueError for whatever does not fit."""
    if not call.layers:
        raise ValueError("greedy decoding needs at least one layer")
    if len(call.state) != spec.states:
        raise ValueError(f"{call.cell} has {spec.states} state tensor(s), got {len(call.state)}")
    if call.max_length < 0:
        raise ValueError(f"max_length must not be negative, got {call.max_length}")
    _check_sizes(call, spec)
    for tensor in call.tensors():
        if tensor.dtype != call.embedding.dtype:
            raise ValueError(
                f"weights and state must share {call.embedding.dtype}, got {tensor.dtype}"
            )
        if tensor.device != call.embedding.device:
            raise ValueError(
                f"weights and state must share {call.embedding.device}, got {tensor.device}"
            )
    if call.start.dtype != torch.int64:
        raise ValueError(f"start must be int64, got {call.start.dtype}")
    if call.start.device != call.embedding.device:
        raise ValueError(f"start is on {call.start.device}, weights on {call.embedding.device}")
    words, vocabulary = call.embedding.shape[0], call.projection[0].shape[0]
    if vocabulary == 0 or vocabulary > words:
        raise ValueError(
            f"the projection scores {vocabulary} tokens, but the embedding holds {words}"
        )
    if eos is not None and not 0 <= eos < vocabulary:
        raise ValueError(f"eos {eos} is outside the vocabulary of {vocabulary} tokens")
    # On a GPU reading them would wait for the device.
    readable = call.start.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and call.start.numel() and not isinstance(call.start, torch._subclasses.FakeTensor):
        start = call.start.tolist()
        low, high = min(start), max(start)
        if low < 0 or high >= words:
            raise ValueError(
                f"start token {low if low < 0 else high} is outside the embedding of {words} tokens"
            )


def _check_sizes(call: _Call, spec: CellSpec) -> None:
    weight_hh = call.layers[0][1]
    if call.embedding.dim() != 2 or weight_hh.dim() != 2 or call.start.dim() != 1:
        raise ValueError(
            "embedding and weights must be matrices and start a vector, got "
            f"{tuple(call.embedding.shape)}, {tuple(weight_hh.shape)}, {tuple(call.start.shape)}"
        )
    hidden, gates = weight_hh.shape[1], spec.gates * weight_hh.shape[1]
    expected = {}
    for number, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(call.layers):
        input_size = call.embedding.shape[1] if number == 0 else hidden
        expected[f"weight_ih of layer {number}"] = (weight_ih, (gates, input_size))
        expected[f"weight_hh of layer {number}"] = (weight_hh, (gates, hidden))
        if (bias_ih is None) != (bias_hh is None):
            raise ValueError(f"layer {number} must have both biases or none")
        if (bias_ih is None) != (call.layers[0][2] is None):
            raise ValueError("all layers must have biases, or none")
        expected[f"bias_ih of layer {number}"] = (bias_ih, (gates,))
        expected[f"bias_hh of layer {number}"] = (bias_hh, (gates,))
    weight, bias = call.projection
    expected["the projection's weight"] = (weight, (weight.shape[0], hidden))
    expected["the projection's bias"] = (bias, (weight.shape[0],))
    for name, tensor in zip("hc", call.state, strict=False):
        expected[f"state {name}"] = (tensor, (len(call.layers), call.start.shape[0], hidden))
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")


def _run_op(call: _Call, spec: CellSpec) -> DecodeResult:
    """The fused op of the tensors' device."""
    weights_ih, weights_hh, biases_ih, biases_hh = (list(w) for w in zip(*call.layers, strict=True))
    bias = biases_ih[0] is not None
    tokens, lengths, log_probs, h_n, c_n = get(f"{call.cell}_greedy")(
        call.embedding,
        weights_ih,
        weights_hh,
        biases_ih if bias else [],
        biases_hh if bias else [],
        *call.projection,
        call.state[0],
        call.state[1] if spec.states > 1 else None,
        call.start,
        call.max_length,
        call.eos,
        call.pad,
        call.scores,
    )
    state = (h_n, c_n) if spec.states > 1 else (h_n,)
    return DecodeResult(tokens, lengths, log_probs if call.scores else None, state)


def _run_steps(call: _Call, spec: CellSpec) -> DecodeResult:
    """The loop over torch's cells: the specification of the fused op."""
    rows = call.start.shape[0]
    wide = torch.float64 if call.embedding.dtype == torch.float64 else torch.float32
    states = [list(s) for s in zip(*(s.unbind(0) for s in call.state), strict=True)]
    final = [s.clone() for s in call.state]
    tokens = call.start.new_full((rows, call.max_length), call.pad)
    lengths = torch.zeros_like(call.start)
    log_probs = call.embedding.new_zeros(rows, dtype=wide)
    alive = torch.ones_like(call.start, dtype=torch.bool)
    token = call.start
    for t in range(call.max_length):
        x = F.embedding(token, call.embedding)
        for number, weights in enumerate(call.layers):
            state = states[number]
            new = _STEPS[call.cell](x, state if spec.states > 1 else state[0], *weights)
            states[number] = list(new) if spec.states > 1 else [new]
            x = states[number][0]
            for kept, value in zip(final, states[number], strict=True):
                kept[number] = torch.where(alive[:, None], value, kept[number])
        logits = F.linear(x, *call.projection)
        token = logits.argmax(-1)
        tokens[:, t] = torch.where(alive, token, tokens[:, t])
        lengths += alive
        if call.scores:
            chosen = torch.log_softmax(logits.to(wide), -1).gather(1, token[:, None])[:, 0]
            log_probs = log_probs + chosen.where(alive, torch.zeros_like(chosen))
        alive = alive & (token != call.eos)
        # On a GPU asking would wait for the device at every step.
        if token.device.type == "cpu" and not alive.any():
            break
    return DecodeResult(tokens, lengths, log_probs if call.scores else None, tuple(final))


@dataclass(frozen=True, slots=True)
class _Backend:
    device: str | None
    can_run: Callable[[_Call], str | None]
    run: Callable[[_Call, CellSpec], DecodeResult]


def _native(call: _Call) -> str | None:
    if _extension.C is None:
        return f"the compiled module is missing: {_extension.REASON}"
    if call.embedding.dtype not in dispatch.DTYPES:
        return f"there is no kernel for {call.embedding.dtype}"
    return None


# Above this many rows a graph of torch's products is expected to win: the persistent kernel makes
# its products without tensor cores.
_PERSISTENT_ROWS = 16


def _persistent(call: _Call) -> str | None:
    if _extension.C is not None and not _extension.C.with_cuda:
        return "the extension was compiled without CUDA"
    reason = _native(call)
    if reason is not None:
        return reason
    spec = CELLS[call.cell]
    rows, hidden = call.start.shape[0], call.layers[0][1].shape[1]
    vocabulary = call.projection[0].shape[0]
    layers = len(call.layers)
    return (
        get("greedy_refusal")(
            call.embedding, spec.gates, spec.states, layers, rows, hidden, vocabulary
        )
        or None
    )


def _graph(call: _Call) -> str | None:
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return "a graph cannot be captured inside another"
    if call.start.shape[0] == 0 or call.max_length == 0:
        return "there is nothing to do"
    return None


def _run_graph(call: _Call, spec: CellSpec) -> DecodeResult:
    """One step over torch's cells, captured and replayed."""
    tokens, lengths, log_probs, state = decode_graph.greedy(
        _STEPS[call.cell],
        call.embedding,
        call.layers,
        call.projection,
        call.state,
        call.start,
        call.max_length,
        call.eos,
        call.pad,
        call.scores,
    )
    return DecodeResult(tokens, lengths, log_probs if call.scores else None, tuple(state))


_BACKENDS: dict[str, _Backend] = {
    "native": _Backend("cpu", _native, _run_op),
    "persistent": _Backend("cuda", _persistent, _run_op),
    "graph": _Backend("cuda", _graph, _run_graph),
    "reference": _Backend(None, lambda call: None, _run_steps),
}


def _refusal(backend: _Backend, call: _Call) -> str | None:
    device = call.embedding.device.type
    if backend.device not in (None, device):
        return f"it runs on {backend.device}, the weights are on {device}"
    return backend.can_run(call)


def _choose(call: _Call, name: str | None) -> _Backend:
    """The named backend, or the first that can run."""
    name = name or (dispatch.selected() if dispatch.selected() in _BACKENDS else None)
    if name is None:
        skipped = "persistent" if call.start.shape[0] > _PERSISTENT_ROWS else None
        return next(
            backend
            for key, backend in _BACKENDS.items()
            if key != skipped and _refusal(backend, call) is None
        )
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; decoding has {', '.join(_BACKENDS)}")
    reason = _refusal(_BACKENDS[name], call)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run this call: {reason}")
    return _BACKENDS[name]


def _register(cell: str) -> None:
    """Fake tensors for `seqkernels::<cell>_greedy`, and a plain word about its gradient."""
    name = f"{NAMESPACE}::{cell}_greedy"

    def fake(embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out, h_0, c_0,
             start, max_length, eos, pad, scores):  # fmt: skip
        weights = (embedding, *weight_ih, *weight_hh, *bias_ih, *bias_hh, weight_out, bias_out)
        same_device(*weights, h_0, c_0, start)
        rows = start.shape[0]
        wide = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        return (
            start.new_empty(rows, max_length),
            start.new_empty(rows),
            embedding.new_empty(rows if scores else 0, dtype=wide),
            torch.empty_like(h_0, memory_format=torch.contiguous_format),
            absent(embedding)
            if c_0 is None
            else torch.empty_like(c_0, memory_format=torch.contiguous_format),
        )

    def setup(ctx, inputs, output):
        pass

    def backward(ctx, *grads):
        raise RuntimeError(f"{name} has no gradient: greedy decoding is not differentiable")

    torch.library.register_fake(name, fake, lib=LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)


if _extension.C is not None:
    for _cell in _STEPS:
        _register(_cell)
