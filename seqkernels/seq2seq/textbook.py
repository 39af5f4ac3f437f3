"""The encoder-decoder as textbooks write it: LSTM, final state only, one symbol at a time."""

from torch import Tensor

from .checks import check_probability, check_states, check_tokens
from .decoder import Decoder
from .encoder import Encoder


class EncoderLSTM(Encoder):
    """Encode to a final state, with the arguments of the textbook class.

    Args:
        input_size: number of symbols.
        embedding_size: width of an embedding.
        hidden_size: width of the state, H.
        num_layers: layers in the stack, L.
        p: dropout on the embeddings and between layers.
        padding_idx: the symbol past a sequence's end; lengths are counted from it.
    """

    def __init__(
        self,
        input_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        p: float,
        padding_idx: int | None = None,
    ) -> None:
        check_probability("p", p)
        super().__init__(
            input_size, embedding_size, hidden_size, num_layers, dropout=p, padding_idx=padding_idx
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode [S, N] symbols to the final hidden and cell state, each [L, N, H]."""
        _, (hidden, cell), _ = self.encode(x, lengths)
        return hidden, cell


class DecoderLSTM(Decoder):
    """Score the next symbol from a symbol and a state, with the arguments of the textbook class.

    Args:
        input_size: number of symbols.
        embedding_size: width of an embedding.
        hidden_size: width of the state, H.
        num_layers: layers in the stack, L.
        p: dropout on the embeddings and between layers.
        output_size: number of symbols that are scored, V.
        padding_idx: the symbol past a target's end.
    """

    def __init__(
        self,
        input_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        p: float,
        output_size: int,
        padding_idx: int | None = None,
    ) -> None:
        check_probability("p", p)
        super().__init__(
            input_size,
            embedding_size,
            hidden_size,
            num_layers,
            output_size=output_size,
            dropout=p,
            output_dropout=0.0,
            padding_idx=padding_idx,
        )

    def forward(
        self, x: Tensor, hidden_state: Tensor, cell_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by one symbol.

        Args:
            x: a symbol of each sequence, [N].
            hidden_state: h of each layer, [L, N, H].
            cell_state: c of each layer, [L, N, H].

        Returns:
            Scores of the next symbol, [N, V], and the new states.
        """
        row = x.unsqueeze(0) if isinstance(x, Tensor) else x
        check_tokens("x", row, self.input_size)
        states = (hidden_state, cell_state)
        check_states("hidden_state, cell_state", states, 2, self.num_layers, self.hidden_size)
        scores, carry = self.step(x, self.start(states), None)
        return scores, *carry.states
