"""Which recurrent layer a sequence-to-sequence model is built from, and how it is called."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .. import dispatch
from ..cells import CELLS
from ..modes import transformed
from ..nn import GRU, LSTM, RNN
from ..nn.base import layer_weights, recurrence
from ..ops.embedded import EMBEDDED
from .checks import check_choice

States = tuple[Tensor, ...]  # (h,) or (h, c), each [L*D, N, H]

LIBRARIES = {
    "seqkernels": {"lstm": LSTM, "gru": GRU, "rnn": RNN},
    "torch": {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN},
}
CELL_OPTIONS = {
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "rnn": ("rnn", {}),
    "rnn_tanh": ("rnn", {}),
    "rnn_relu": ("rnn", {"nonlinearity": "relu"}),
}


def recurrent_layer(
    cell: str,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    library: str = "seqkernels",
) -> nn.Module:
    """Build a time-first stack of recurrent layers.

    Args:
        cell: `lstm`, `gru`, `rnn` (the same as `rnn_tanh`) or `rnn_relu`.
        input_size: width of the input.
        hidden_size: width of the state.
        num_layers: layers in the stack.
        bidirectional: run each layer in both directions.
        dropout: probability between two layers; of no effect with one layer.
        library: `seqkernels`, or `torch` for the layers of torch.nn, to compare with.

    Raises:
        ValueError: unknown cell or library.
    """
    check_choice("cell", cell, CELL_OPTIONS)
    check_choice("library", library, LIBRARIES)
    kind, options = CELL_OPTIONS[cell]
    return LIBRARIES[library][kind](
        input_size,
        hidden_size,
        num_layers,
        bidirectional=bidirectional,
        # torch.nn warns of a dropout that has no place to act.
        dropout=dropout if num_layers > 1 else 0.0,
        **options,
    )


def run(
    layer: nn.Module, x: Tensor, state: States | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, States]:
    """Call a recurrent layer with its state as a tuple, whatever the cell.

    Args:
        layer: what `recurrent_layer` built.
        x: input, [T, N, I].
        state: initial (h,) or (h, c), each [L*D, N, H]; zeros by default.
        lengths: steps of each row, [N]; the output past a row's end is zero.

    Returns:
        The output, [T, N, D*H], and the final (h,) or (h, c), each [L*D, N, H].
    """
    if state is not None:
        state = state if len(state) == 2 else state[0]
    if lengths is None:
        output, state = layer(x, state)
    elif isinstance(layer, (LSTM, GRU, RNN)):
        output, state = layer(x, state, lengths=lengths)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        packed, state = layer(packed, state)
        output, _ = pad_packed_sequence(packed, total_length=x.shape[0])
    return output, state if isinstance(state, tuple) else (state,)


def run_embedded(
    layer: nn.Module,
    embedding: nn.Embedding,
    dropout: nn.Dropout,
    tokens: Tensor,
    state: States | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, States]:
    """`run` on dropout(embedding(tokens)); tokens [T, N], already checked.

    In training on the CPU a single layer projects the vocabulary once instead of every place, where
    that is less work: see `seqkernels.ops.embedded`.
    """
    if not _projects_vocabulary(layer, embedding, dropout, tokens, state):
        return run(layer, dropout(embedding(tokens)), state, lengths)
    tokens = tokens.to(torch.int64)
    shape = _state_shape(layer, tokens)
    count = CELLS[recurrence(layer)].states
    if state is None:
        state = (embedding.weight.new_zeros(shape),) * count
    if lengths is not None:
        lengths = lengths.to(torch.int64)
    outputs, finals = [], []
    for index in range(shape[0]):
        weights = layer_weights(layer, index)
        if not layer.bias:
            weights += [None, None]
        h_0, c_0 = (*(s[index] for s in state), None)[:2]
        output, *final = EMBEDDED[recurrence(layer)](
            tokens, embedding.weight, embedding.padding_idx, *weights, h_0, c_0, lengths, index == 1
        )
        outputs.append(output)
        finals.append(final[:count])
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return output, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _state_shape(layer: nn.Module, tokens: Tensor) -> tuple[int, int, int]:
    return (2 if layer.bidirectional else 1, tokens.shape[1], layer.hidden_size)


def _projects_vocabulary(
    layer: nn.Module,
    embedding: nn.Embedding,
    dropout: nn.Dropout,
    tokens: Tensor,
    state: States | None,
) -> bool:
    """Whether the layer's gates may be looked up by symbol, and whether that is less work.

    Arguments that do not fit are left to the ordinary way, which says what is wrong.
    """
    weight = embedding.weight
    return (
        isinstance(layer, (LSTM, GRU, RNN))
        and layer.num_layers == 1
        and not layer.proj_size
        and not (dropout.training and dropout.p > 0.0)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and dispatch.takes_native(weight)
        and weight.dtype == layer.weight_hh_l0.dtype
        and weight.shape[1] == layer.input_size
        and (
            state is None
            or len(state) == CELLS[recurrence(layer)].states
            and all(
                s.shape == _state_shape(layer, tokens) and s.dtype == weight.dtype and s.is_cpu
                for s in state
            )
        )
        and not torch.is_autocast_enabled("cpu")
        and tokens.numel() >= 2 * len(weight)
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
        and not any(hooked(module) for module in (embedding, dropout, layer))
        and not transformed((weight, tokens))
    )


def hooked(module: nn.Module) -> bool:
    """Whether something is attached to a module's call, which would not see an op in its place."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def reverse_rows(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each row of [T, N] or [T, N, I] within its length; the padding stays at the end."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(0, index if x.dim() == 2 else index.unsqueeze(-1).expand_as(x))
