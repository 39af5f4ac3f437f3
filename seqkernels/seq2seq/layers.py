"""Which recurrent layer a sequence-to-sequence model is built from, and how it is called."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..nn import GRU, LSTM, RNN

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
    if cell not in CELL_OPTIONS:
        raise ValueError(f"unknown cell {cell!r}; expected one of {', '.join(CELL_OPTIONS)}")
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; expected one of {', '.join(LIBRARIES)}")
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


def reverse_rows(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse each row of [T, N] or [T, N, I] within its length; the padding stays at the end."""
    if lengths is None:
        return x.flip(0)
    time = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return x.gather(0, index if x.dim() == 2 else index.unsqueeze(-1).expand_as(x))
