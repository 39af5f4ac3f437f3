"""Several models that write one target together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attention, Memory
from .checks import check_type
from .decoder import Carry, Decoder
from .encoder import Encoder
from .generation import GenerationMixin
from .layers import States
from .model import Seq2Seq


class Ensemble(GenerationMixin, nn.Module):
    """Models of the same symbols, trained side by side, that average their probabilities.

    The probability of the next symbol is the mean of what the members give it (Hansen and Salamon
    1990; for sequence to sequence Sutskever et al. 2014, section 3.6). The members need not be
    alike: cells, widths and attention may differ.

    Args:
        models: the members, at least one.

    Raises:
        TypeError: a member that is not a `Seq2Seq`.
        ValueError: no member, or members that differ in symbols, `bos_idx`, `eos_idx`, padding or
            `batch_first`; the message says in what.
    """

    def __init__(self, models: Sequence[Seq2Seq]) -> None:
        super().__init__()
        if len(models) == 0:
            raise ValueError("an ensemble needs at least one model")
        for index, model in enumerate(models):
            check_type(f"models[{index}]", model, Seq2Seq)
        for name, of in _SHARED.items():
            values = [of(model) for model in models]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} differs between the models: {values}")
        self.models = nn.ModuleList(models)
        self.batch_first = models[0].batch_first
        self.bos_idx = models[0].bos_idx
        self.eos_idx = models[0].eos_idx

    @property
    def encoder(self) -> Encoder:
        """The first member's, whose symbols are those of all."""
        return self.models[0].encoder

    @property
    def decoder(self) -> "_Decoders":
        """All members' as one, for a search to step."""
        return _Decoders([model.decoder for model in self.models])

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        teacher_forcing_ratio: float = 1.0,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Each member's scores of the target, to train every one by its own loss.

        Arguments, shapes and errors are those of `Seq2Seq.forward`.
        """
        return tuple(
            model(source, target, teacher_forcing_ratio, lengths=lengths) for model in self.models
        )

    def encode(
        self, source: Tensor, lengths: Tensor | None = None
    ) -> tuple["_Carries", "_Memories"]:
        """What the members' decoders start from, and what they attend to."""
        carries, memories = zip(
            *(model.encode(source, lengths) for model in self.models), strict=True
        )
        return _Carries(carries), _Memories(memories)

    def attention_weights(
        self, source: Tensor, target: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """The mean of the members' attention, [N, T - 1, S]; see `Seq2Seq.attention_weights`."""
        weights = [model.attention_weights(source, target, lengths) for model in self.models]
        return torch.stack(weights).mean(0)


_SHARED = {
    "the source's number of symbols": lambda model: model.encoder.input_size,
    "the target's number of symbols": lambda model: model.decoder.input_size,
    "the number of scored symbols": lambda model: model.decoder.output_size,
    "the source's padding_idx": lambda model: model.encoder.padding_idx,
    "the target's padding_idx": lambda model: model.decoder.padding_idx,
    "bos_idx": lambda model: model.bos_idx,
    "eos_idx": lambda model: model.eos_idx,
    "batch_first": lambda model: model.batch_first,
}


class _Carries(NamedTuple):
    """A `Carry` of each member."""

    parts: tuple[Carry, ...]

    @property
    def states(self) -> States:
        """The first member's, for the size of the batch."""
        return self.parts[0].states

    def select(self, rows: Tensor) -> "_Carries":
        return _Carries(tuple(part.select(rows) for part in self.parts))


class _Memories(NamedTuple):
    """A `Memory` of each member, None where it has no attention."""

    parts: tuple[Memory | None, ...]

    def select(self, rows: Tensor) -> "_Memories":
        return _Memories(tuple(None if part is None else part.select(rows) for part in self.parts))


class _Decoders:
    """The members' decoders as a search sees one."""

    def __init__(self, decoders: list[Decoder]) -> None:
        self.decoders = decoders
        self.input_size = decoders[0].input_size
        self.output_size = decoders[0].output_size
        self.padding_idx = decoders[0].padding_idx

    @property
    def attention(self) -> Attention | None:
        """None where a member has none."""
        every = [decoder.attention for decoder in self.decoders]
        return None if None in every else every[0]

    def step(self, tokens: Tensor, carry: _Carries, memory: _Memories) -> tuple[Tensor, _Carries]:
        """Logarithms of the mean probabilities, [N, V], in float32, and the new carry."""
        logs, carries = [], []
        for decoder, own, source in zip(self.decoders, carry.parts, memory.parts, strict=True):
            scores, own = decoder.step(tokens, own, source)
            logs.append(torch.log_softmax(scores.float(), -1))
            carries.append(own)
        mean = torch.logsumexp(torch.stack(logs), 0) - math.log(len(logs))
        return mean, _Carries(tuple(carries))
