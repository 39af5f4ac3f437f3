"""From an encoder's final states to a decoder's initial ones."""

import torch
from torch import Tensor, nn

from .checks import check_choice, check_states, check_type
from .decoder import Decoder
from .encoder import Encoder
from .layers import States

BRIDGES = ("join", "linear")


class Bridge(nn.Module):
    """Start each layer of the decoder from the same layer of the encoder, both directions together.

    `join` sets the two directions side by side, so D*H of the encoder must be the decoder's H.
    `linear` maps them to any width: tanh(W [forward; backward]) for h, as Bahdanau et al. 2015 do
    for one direction, and without tanh for c, which is not bounded. An encoder of more layers than
    the decoder gives its last ones.

    Args:
        encoder: where the states come from.
        decoder: where they go.
        kind: `join` or `linear`; by default `join` where it fits.

    Raises:
        TypeError: not an encoder or not a decoder.
        ValueError: the two cannot be joined; the message says why.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, kind: str | None = None) -> None:
        super().__init__()
        check_type("encoder", encoder, Encoder)
        check_type("decoder", decoder, Decoder)
        fits = encoder.output_size == decoder.hidden_size
        if kind is None:
            kind = "join" if fits else "linear"
        check_choice("bridge", kind, BRIDGES)
        if kind == "join" and not fits:
            raise ValueError(
                f"bridge 'join': the encoder's state is {encoder.output_size} wide, the decoder's "
                f"{decoder.hidden_size}"
            )
        if (encoder.cell == "lstm") != (decoder.cell == "lstm"):
            raise ValueError(f"encoder cell {encoder.cell!r} and decoder cell {decoder.cell!r}")
        if encoder.num_layers < decoder.num_layers:
            raise ValueError(
                f"the decoder has {decoder.num_layers} layers, the encoder {encoder.num_layers}"
            )
        self.directions = encoder.directions
        self.expected = (
            2 if decoder.cell == "lstm" else 1,
            encoder.num_layers * encoder.directions,
            encoder.hidden_size,
        )
        self.num_layers = decoder.num_layers
        self.linears = None
        if kind == "linear":
            self.linears = nn.ModuleList(
                nn.Linear(encoder.output_size, decoder.hidden_size) for _ in range(self.expected[0])
            )

    def forward(self, states: States) -> States:
        """Map (h,) or (h, c), each [L*D, N, H], to what the decoder starts from.

        Raises:
            TypeError: not a tuple of tensors.
            ValueError: states of another number or shape.
        """
        check_states("states", states, *self.expected)
        joined = tuple(self._join(state) for state in states)
        if self.linears is None:
            return joined
        h = torch.tanh(self.linears[0](joined[0]))
        return (h,) if len(joined) == 1 else (h, self.linears[1](joined[1]))

    def _join(self, state: Tensor) -> Tensor:
        if self.directions == 2:
            layers, rows, width = state.shape[0] // 2, *state.shape[1:]
            state = state.view(layers, 2, rows, width).transpose(1, 2).reshape(layers, rows, -1)
        return state[state.shape[0] - self.num_layers :]
