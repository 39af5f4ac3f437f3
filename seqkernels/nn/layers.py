"""LSTM, GRU and RNN: drop-in replacements of the layers of `torch.nn`."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .base import RecurrentLayer, run
from .stack import State

_Device = torch.device | str | int | None


class LSTM(RecurrentLayer):
    """Multi-layer LSTM with the arguments, parameters and results of `torch.nn.LSTM`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        num_layers: L, layers stacked on one another.
        bias: whether the layers have biases.
        batch_first: input and output are [N, T, .], not [T, N, .]; states keep their layout.
        dropout: probability of zeroing an output between layers, in training.
        bidirectional: a second set of layers runs from the end to the start; D = 2, otherwise 1.
        proj_size: P, if not 0: the hidden state is projected to P features.
        device: where the parameters are created.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: what `torch.nn.LSTM` raises for the same arguments.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_c_sequence: bool = False,
    ) -> tuple[Tensor | PackedSequence, State] | tuple[Tensor | PackedSequence, State, Tensor]:
        """Run the layers over a sequence.

        Args:
            input: [T, N, I]; [N, T, I] with `batch_first`; [T, I] unbatched; or a PackedSequence.
            hx: (h_0, c_0), [D * L, N, P or H] and [D * L, N, H], without N if unbatched; zeros if
                not given.
            lengths: steps of each row of a padded input, unsorted, on the input's device, [N]. It
                is read on that device alone, so nothing synchronises. Past its end a row keeps its
                state and its output is zero.
            reset: where true, an episode begins at that step: no state passes between it and the
                step before, in either direction. Bool, shaped as the input without I.
            return_c_sequence: also return the cell state of the last layer after every step.

        Returns:
            The output, [T, N, D * (P or H)] in the input's layout; (h_n, c_n), shaped as hx; and,
            if asked for, the cell states, [T, N, D * H].

        Raises:
            RuntimeError, TypeError, ValueError: as `torch.nn.LSTM`, with the offending sizes.
        """
        results = run(self, input, hx, lengths, reset, return_c_sequence)
        return results if return_c_sequence else results[:2]


class GRU(RecurrentLayer):
    """Multi-layer GRU with the arguments, parameters and results of `torch.nn.GRU`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        num_layers: L, layers stacked on one another.
        bias: whether the layers have biases.
        batch_first: input and output are [N, T, .], not [T, N, .]; states keep their layout.
        dropout: probability of zeroing an output between layers, in training.
        bidirectional: a second set of layers runs from the end to the start; D = 2, otherwise 1.
        device: where the parameters are created.
        dtype: of the parameters.
        reset: "after", as torch and cuDNN, n = tanh(W x + b + r (U h + b')); or "before", as Cho et
            al. (2014), n = tanh(W x + b + U (r h) + b'): the weights of Keras with
            `reset_after=False` and of ONNX with `linear_before_reset=0`.
        update: what an open update gate z does to the state: "keep" it, as torch, Keras, ONNX and
            Cho et al. (2014, equation 7), h' = z h + (1 - z) n; or "replace" it, as Chung et al.
            (2014, equation 3), h' = (1 - z) h + z n.
        proj_size: refused, as `torch.nn.GRU` does; only LSTM projects.

    Raises:
        TypeError, ValueError: what `torch.nn.GRU` raises for the same arguments; ValueError for
            another `reset` or `update`.
    """

    # A converted module has these from its class.
    _seqkernels_reset = "after"
    _seqkernels_update = "keep"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str = "after",
        update: str = "keep",
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        set_form(self, reset, update)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layers over a sequence.

        Args:
            input: [T, N, I]; [N, T, I] with `batch_first`; [T, I] unbatched; or a PackedSequence.
            hx: h_0, [D * L, N, H], without N if unbatched; zeros if not given.
            lengths: steps of each row of a padded input, unsorted, on the input's device, [N]. It
                is read on that device alone, so nothing synchronises. Past its end a row keeps its
                state and its output is zero.
            reset: where true, an episode begins at that step: no state passes between it and the
                step before, in either direction. Bool, shaped as the input without I.

        Returns:
            The output, [T, N, D * H] in the input's layout, and h_n, shaped as hx.

        Raises:
            RuntimeError, TypeError, ValueError: as `torch.nn.GRU`, with the offending sizes.
        """
        output, (h_n,), _ = run(self, input, hx, lengths, reset)
        return output, h_n

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch prints them."""
        return super().extra_repr() + form_repr(self)


class RNN(RecurrentLayer):
    """Multi-layer Elman RNN with the arguments, parameters and results of `torch.nn.RNN`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        num_layers: L, layers stacked on one another.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have biases.
        batch_first: input and output are [N, T, .], not [T, N, .]; states keep their layout.
        dropout: probability of zeroing an output between layers, in training.
        bidirectional: a second set of layers runs from the end to the start; D = 2, otherwise 1.
        device: where the parameters are created.
        dtype: of the parameters.
        proj_size: refused, as `torch.nn.RNN` does; only LSTM projects.

    Raises:
        TypeError, ValueError: what `torch.nn.RNN` raises for the same arguments.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layers over a sequence; arguments, results and errors are those of `GRU`."""
        output, (h_n,), _ = run(self, input, hx, lengths, reset)
        return output, h_n


def set_form(gru: nn.Module, reset: object, update: object) -> None:
    """Check and keep the arguments `reset` and `update` of a GRU or GRUCell."""
    for name, value, known in (
        ("reset", reset, ("after", "before")),
        ("update", update, ("keep", "replace")),
    ):
        if value not in known:
            raise ValueError(
                f"Unknown {name} {value!r}. Select from {' or '.join(map(repr, known))}."
            )
    if reset != "after":
        gru._seqkernels_reset = reset
    if update != "keep":
        gru._seqkernels_update = update


def form_repr(gru: nn.Module) -> str:
    """What `extra_repr` says of a GRU that is not torch's."""
    text = "" if gru._seqkernels_reset == "after" else f", reset={gru._seqkernels_reset}"
    return text + ("" if gru._seqkernels_update == "keep" else f", update={gru._seqkernels_update}")


def _refuse_projection(proj_size: object) -> None:
    if proj_size is not None:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
