"""The decoder: recurrent layers over the target so far, attention, scores of the next symbol."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attention, Memory
from .checks import (
    check_flag,
    check_integer,
    check_probability,
    check_states,
    check_symbol,
    check_tokens,
)
from .dropout import dropout_layer
from .encoder import make_embedding
from .layers import States, recurrent_layer, run, run_embedded
from .linear import linear_layer


class Carry(NamedTuple):
    """What one step of a decoder hands to the next.

    Attributes:
        states: (h,) or (h, c) of the stack, each [L, N, H].
        feed: the attentional vector of the last step, [N, H]; None without input feeding.
    """

    states: States
    feed: Tensor | None

    def select(self, rows: Tensor) -> "Carry":
        """The given rows of the batch, in that order; rows [N']."""
        states = tuple(state.index_select(1, rows) for state in self.states)
        return Carry(states, None if self.feed is None else self.feed.index_select(0, rows))


class Decoder(nn.Module):
    """Score the next symbol after each symbol of a target.

    Args:
        input_size: number of symbols.
        embedding_size: width of an embedding.
        hidden_size: width of the state, H.
        num_layers: layers in the stack, L.
        cell: `lstm`, `gru`, `rnn` or `rnn_relu`.
        output_size: number of symbols that are scored, V; input_size by default.
        attention: `dot`, `general`, `additive`, or None for the encoder's final state only.
        memory_size: width of the encoder's output, M; hidden_size by default.
        input_feeding: give each step the attentional vector of the last beside its symbol (Luong et
            al. 2015, section 3.3). The steps then depend on each other through attention, and a
            target is read one step at a time.
        dropout: probability on the embeddings, between layers and before the output layer.
        embedding_dropout: another probability on the embeddings.
        output_dropout: another probability before the output layer.
        tied_output: use the embedding as the weight of the output layer.
        embedding: a layer to share, instead of an own one.
        padding_idx: the symbol past a target's end.
        batch_first: targets [N, T] and scores [N, T, V]; else [T, N] and [T, N, V].
        library: `seqkernels`, or `torch` to build from torch.nn.

    Raises:
        TypeError: a number of another type, or a shared embedding that is none.
        ValueError: a number out of range, or arguments that do not fit together; the message names
            them.
    """

    def __init__(
        self,
        input_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        output_size: int | None = None,
        attention: str | None = None,
        memory_size: int | None = None,
        input_feeding: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        output_dropout: float | None = None,
        tied_output: bool = False,
        embedding: nn.Embedding | None = None,
        padding_idx: int | None = None,
        batch_first: bool = False,
        library: str = "seqkernels",
    ) -> None:
        super().__init__()
        self.input_feeding = check_flag("input_feeding", input_feeding)
        if input_feeding and attention is None:
            raise ValueError("input_feeding needs attention")
        self.input_size = check_integer("input_size", input_size)
        self.hidden_size = hidden_size = check_integer("hidden_size", hidden_size)
        self.num_layers = check_integer("num_layers", num_layers)
        self.cell = cell
        self.output_size = self.input_size
        if output_size is not None:
            self.output_size = check_integer("output_size", output_size)
        self.padding_idx = check_symbol("padding_idx", padding_idx, self.input_size)
        self.batch_first = check_flag("batch_first", batch_first)
        self.embedding = make_embedding(
            self.input_size, embedding_size, self.padding_idx, embedding
        )
        embedding_size = self.embedding.embedding_dim
        check_probability("dropout", dropout)
        own_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.dropout = dropout_layer("embedding_dropout", own_dropout, library)
        self.rnn = recurrent_layer(
            cell,
            embedding_size + (hidden_size if input_feeding else 0),
            hidden_size,
            self.num_layers,
            dropout=dropout,
            library=library,
        )
        memory_size = hidden_size if memory_size is None else memory_size
        check_integer("memory_size", memory_size)
        self.attention = None
        if attention is not None:
            self.attention = Attention(attention, hidden_size, memory_size, library=library)
        own_dropout = dropout if output_dropout is None else output_dropout
        self.output_dropout = dropout_layer("output_dropout", own_dropout, library)
        self.output = linear_layer(hidden_size, self.output_size, library=library)
        if check_flag("tied_output", tied_output):
            if (self.output_size, hidden_size) != (self.input_size, embedding_size):
                raise ValueError(
                    f"tied_output: the output layer is [{self.output_size}, {hidden_size}], "
                    f"the embedding [{self.input_size}, {embedding_size}]"
                )
            self.output.weight = self.embedding.weight

    def start(self, states: States) -> Carry:
        """The carry before the first step; states (h,) or (h, c), each [L, N, H]."""
        feed = torch.zeros_like(states[0][-1]) if self.input_feeding else None
        return Carry(states, feed)

    def forward(
        self, inputs: Tensor, states: States, memory: Memory | None = None
    ) -> tuple[Tensor, States]:
        """Score every next symbol of a known target.

        Args:
            inputs: symbols, the first of them the start symbol, [T, N], or [N, T] with batch_first.
            states: initial (h,) or (h, c), each [L, N, H].
            memory: the source, from `attention.prepare`.

        Returns:
            Scores before the softmax, [T, N, V] or [N, T, V], and the final states.

        Raises:
            TypeError: inputs are not integers, states no tensors, or memory is missing.
            ValueError: nothing to read, or states of another number or shape.
            IndexError: a symbol outside the vocabulary.
        """
        check_tokens("inputs", inputs, self.input_size)
        count = 2 if self.cell == "lstm" else 1
        check_states("states", states, count, self.num_layers, self.hidden_size)
        inputs = inputs.t() if self.batch_first else inputs
        scores, carry, _ = self.decode(inputs, self.start(states), memory)
        return (scores.transpose(0, 1) if self.batch_first else scores), carry.states

    def decode(
        self, inputs: Tensor, carry: Carry, memory: Memory | None
    ) -> tuple[Tensor, Carry, Tensor | None]:
        """Run over known symbols, time-first.

        Without input feeding this is ONE call of the recurrent layer over the whole target.

        Args:
            inputs: symbols, [T, N].
            carry: from `start` or an earlier call.
            memory: from `attention.prepare`; None without attention.

        Returns:
            Scores [T, N, V], the carry, and the attention's weights [N, T, S] or None.
        """
        if self.input_feeding:
            x = self.dropout(self.embedding(inputs))
            hidden, carry, weights = self._fed_steps(x, carry, memory)
        else:
            hidden, states = run_embedded(
                self.rnn, self.embedding, self.dropout, inputs, carry.states
            )
            carry, weights = Carry(states, None), None
            if self.attention is not None:
                hidden, weights = self.attention(hidden, memory)
        return self.output(self.output_dropout(hidden)), carry, weights

    def step(self, tokens: Tensor, carry: Carry, memory: Memory | None) -> tuple[Tensor, Carry]:
        """Score the symbols after one; tokens [N], scores [N, V]."""
        scores, carry, _ = self.decode(tokens.unsqueeze(0), carry, memory)
        return scores.squeeze(0), carry

    def _fed_steps(self, x: Tensor, carry: Carry, memory: Memory) -> tuple[Tensor, Carry, Tensor]:
        hidden, weights = [], []
        states, feed = carry
        for step in x:
            output, states = run(self.rnn, torch.cat((step, feed), -1).unsqueeze(0), states)
            attended, weight = self.attention(output, memory)
            feed = attended.squeeze(0)
            hidden.append(feed)
            weights.append(weight)
        return torch.stack(hidden), Carry(states, feed), torch.cat(weights, 1)
