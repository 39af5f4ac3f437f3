"""Attention over the encoder's output, masked by the lengths of the source."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_choice, check_integer, check_lengths
from .layers import LIBRARIES
from .linear import linear_layer

ATTENTIONS = ("dot", "general", "additive")


class Memory(NamedTuple):
    """A source as attention reads it, prepared once for all steps of the decoder.

    Attributes:
        keys: what a query is compared with, [N, S, H].
        values: what is averaged, [N, S, M].
        bias: 0 at a source's own steps and -inf past its end, [N, 1, S]; None without lengths.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None

    def select(self, rows: Tensor) -> "Memory":
        """The given rows of the batch, in that order; rows [N']."""
        return Memory(*(None if part is None else part.index_select(0, rows) for part in self))


class Attention(nn.Module):
    """Global attention and the layer that merges its context with the decoder's output.

    The scores are those of Luong et al. 2015, equation 8 (`dot`: q k; `general`: q W k), or of
    Bahdanau et al. 2015 (`additive`: v tanh(W q + U k)). The result is Luong's equation 5,
    tanh(W [context; q]). The query is the decoder's output of the same step, so without input
    feeding a whole target is two batched products after one call of the recurrent layer.

    Args:
        kind: `dot`, `general` or `additive`.
        query_size: width of the decoder's output, H.
        memory_size: width of the encoder's output, M.
        library: `seqkernels`, or `torch` to build from torch.nn.

    Raises:
        TypeError: a width that is not an integer.
        ValueError: unknown kind or library, a width below 1, or `dot` between different widths.
    """

    def __init__(
        self, kind: str, query_size: int, memory_size: int, *, library: str = "seqkernels"
    ) -> None:
        super().__init__()
        check_choice("attention", kind, ATTENTIONS)
        check_choice("library", library, LIBRARIES)
        query_size = check_integer("query_size", query_size)
        memory_size = check_integer("memory_size", memory_size)
        if kind == "dot" and query_size != memory_size:
            raise ValueError(
                f"dot attention needs equal widths, got {query_size} in the decoder and "
                f"{memory_size} in the encoder; general and additive do not"
            )
        self.kind = kind
        self.memory_size = memory_size
        if kind != "dot":
            self.key = linear_layer(memory_size, query_size, bias=False, library=library)
        if kind == "additive":
            self.query = linear_layer(query_size, query_size, library=library)
            self.score = linear_layer(query_size, 1, bias=False, library=library)
        self.merge = linear_layer(memory_size + query_size, query_size, bias=False, library=library)

    def prepare(self, memory: Tensor, lengths: Tensor | None = None) -> Memory:
        """Project the encoder's output once.

        Args:
            memory: the encoder's output, [S, N, M].
            lengths: steps of each row, [N].

        Raises:
            TypeError: memory is not a tensor, or the lengths are not integers.
            ValueError: memory or the lengths have another shape, or a length is out of range.
        """
        if not isinstance(memory, Tensor):
            raise TypeError(f"memory: expected a Tensor, got {type(memory).__name__}")
        if memory.dim() != 3 or memory.shape[2] != self.memory_size:
            shape = list(memory.shape)
            raise ValueError(f"memory: expected [S, N, {self.memory_size}], got {shape}")
        keys = memory if self.kind == "dot" else self.key(memory)
        bias = None
        if lengths is not None:
            check_lengths(lengths, memory.shape[0], memory.shape[1])
            time = torch.arange(memory.shape[0], device=memory.device)
            past_end = time >= lengths.to(memory.device).unsqueeze(1)
            bias = memory.new_zeros(past_end.shape).masked_fill(past_end, -torch.inf).unsqueeze(1)
        return Memory(keys.transpose(0, 1), memory.transpose(0, 1), bias)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend at every step of the target at once.

        Args:
            query: the decoder's output, [T, N, H].
            memory: from `prepare`.

        Returns:
            tanh(W [context; query]), [T, N, H], and the weights of the source steps, [N, T, S].

        Raises:
            TypeError: memory is not from `prepare`.
        """
        if not isinstance(memory, Memory):
            raise TypeError(f"memory: expected a Memory of `prepare`, got {type(memory).__name__}")
        rows = query.transpose(0, 1)
        if self.kind == "additive":
            hidden = torch.tanh(self.query(rows).unsqueeze(2) + memory.keys.unsqueeze(1))
            scores = self.score(hidden).squeeze(-1)
        else:
            scores = torch.bmm(rows, memory.keys.transpose(1, 2))
        if memory.bias is not None:
            scores = scores + memory.bias
        weights = F.softmax(scores, dim=-1)
        context = torch.bmm(weights, memory.values).transpose(0, 1)
        return torch.tanh(self.merge(torch.cat((context, query), dim=-1))), weights
