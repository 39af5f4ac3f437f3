"""The encoder: embedded symbols through a stack of recurrent layers."""

from torch import Tensor, nn

from .checks import (
    check_flag,
    check_integer,
    check_lengths,
    check_probability,
    check_symbol,
    check_tokens,
    check_type,
)
from .dropout import dropout_layer
from .layers import States, recurrent_layer, reverse_rows, run_embedded


class Encoder(nn.Module):
    """Read a padded batch of sequences of symbols.

    Args:
        input_size: number of symbols.
        embedding_size: width of an embedding.
        hidden_size: width of the state of one direction, H.
        num_layers: layers in the stack, L.
        cell: `lstm`, `gru`, `rnn` or `rnn_relu`.
        bidirectional: read in both directions; D is 2, else 1.
        dropout: probability on the embeddings and between layers.
        embedding_dropout: another probability on the embeddings.
        reverse_source: read each sequence from its end, as Sutskever et al. 2014 do.
        embedding: a layer to share, instead of an own one.
        padding_idx: the symbol past a sequence's end; lengths are counted from it where not given.
        batch_first: source [N, S] and output [N, S, D*H]; else [S, N] and [S, N, D*H].
        library: `seqkernels`, or `torch` to build from torch.nn.

    Raises:
        TypeError: a number of another type, or a shared embedding that is none.
        ValueError: a number out of range, unknown cell or library, or a shared embedding of another
            size.
    """

    def __init__(
        self,
        input_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "lstm",
        bidirectional: bool = False,
        dropout: float = 0.0,
        embedding_dropout: float | None = None,
        reverse_source: bool = False,
        embedding: nn.Embedding | None = None,
        padding_idx: int | None = None,
        batch_first: bool = False,
        library: str = "seqkernels",
    ) -> None:
        super().__init__()
        self.input_size = check_integer("input_size", input_size)
        self.hidden_size = check_integer("hidden_size", hidden_size)
        self.num_layers = check_integer("num_layers", num_layers)
        self.cell = cell
        bidirectional = check_flag("bidirectional", bidirectional)
        self.directions = 2 if bidirectional else 1
        self.output_size = self.hidden_size * self.directions
        self.reverse_source = check_flag("reverse_source", reverse_source)
        self.padding_idx = check_symbol("padding_idx", padding_idx, self.input_size)
        self.batch_first = check_flag("batch_first", batch_first)
        self.embedding = make_embedding(
            self.input_size, embedding_size, self.padding_idx, embedding
        )
        check_probability("dropout", dropout)
        own_dropout = dropout if embedding_dropout is None else embedding_dropout
        self.dropout = dropout_layer("embedding_dropout", own_dropout, library)
        self.rnn = recurrent_layer(
            cell,
            self.embedding.embedding_dim,
            self.hidden_size,
            self.num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            library=library,
        )

    def forward(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, States]:
        """Encode a batch.

        Args:
            source: symbols, [S, N], or [N, S] with batch_first.
            lengths: steps of each sequence, [N]; by default every step that is not padding.

        Returns:
            The output, [S, N, D*H] or [N, S, D*H], and the final (h,) or (h, c), each [L*D, N, H].

        Raises:
            TypeError: source or lengths are not integers.
            ValueError: an empty source or a sequence of length 0.
            IndexError: a symbol outside the vocabulary.
        """
        output, states, _ = self.encode(source, lengths)
        return (output.transpose(0, 1) if self.batch_first else output), states

    def encode(
        self, source: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, States, Tensor | None]:
        """As `forward`, but always time-first, and with the lengths that were used."""
        check_tokens("source", source, self.input_size)
        if self.batch_first:
            source = source.t()
        if lengths is None and self.padding_idx is not None:
            lengths = (source != self.padding_idx).sum(0)
        if lengths is not None:
            check_lengths(lengths, *source.shape)
            lengths = lengths.to(source.device)
        if self.reverse_source:
            source = reverse_rows(source, lengths)
        output, states = run_embedded(
            self.rnn, self.embedding, self.dropout, source, lengths=lengths
        )
        return output, states, lengths


def make_embedding(
    input_size: int, embedding_size: int, padding_idx: int | None, shared: nn.Embedding | None
) -> nn.Embedding:
    """The shared embedding after a check of its size, or a new one.

    The number of symbols and the padding symbol have been checked.
    """
    embedding_size = check_integer("embedding_size", embedding_size)
    if shared is None:
        return nn.Embedding(input_size, embedding_size, padding_idx=padding_idx)
    check_type("embedding", shared, nn.Embedding)
    expected, got = (input_size, embedding_size), tuple(shared.weight.shape)
    if got != expected:
        raise ValueError(f"shared embedding: expected {list(expected)}, got {list(got)}")
    return shared
