"""Encoder and decoder as one module: teacher forcing and free running."""

import torch
from torch import Tensor, nn

from .attention import Memory
from .bridge import Bridge
from .checks import (
    check_probability,
    check_reads_own,
    check_symbol,
    check_tokens,
    check_type,
)
from .decoder import Carry, Decoder
from .encoder import Encoder
from .generation import GenerationMixin
from .layers import reverse_rows


class Seq2Seq(GenerationMixin, nn.Module):
    """Turn one sequence of symbols into another.

    Args:
        encoder: reads the source.
        decoder: writes the target.
        bridge: `join`, `linear` or None, see `Bridge`.
        bos_idx: the symbol before every target; `generate` needs it.
        eos_idx: the symbol at the end of every target; `generate` needs it.

    Raises:
        TypeError: not an encoder, not a decoder, or a symbol that is not an integer.
        ValueError: encoder and decoder do not fit together, or a symbol is outside the vocabulary;
            the message says why.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        bridge: str | None = None,
        bos_idx: int | None = None,
        eos_idx: int | None = None,
    ) -> None:
        super().__init__()
        check_type("encoder", encoder, Encoder)
        check_type("decoder", decoder, Decoder)
        if encoder.batch_first != decoder.batch_first:
            raise ValueError("batch_first differs between encoder and decoder")
        attention = decoder.attention
        if attention is not None and attention.memory_size != encoder.output_size:
            raise ValueError(
                f"the encoder's output is {encoder.output_size} wide, the decoder attends to "
                f"memory_size={attention.memory_size}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.bridge = Bridge(encoder, decoder, bridge)
        self.batch_first = encoder.batch_first
        self.bos_idx = check_symbol("bos_idx", bos_idx, decoder.input_size)
        self.eos_idx = check_symbol("eos_idx", eos_idx, decoder.output_size)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        teacher_forcing_ratio: float = 1.0,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Score every symbol of the target.

        With a ratio of 1 the decoder reads the whole target in one call of its recurrent layers.
        Below 1 it runs step by step, and at each step and row a coin decides between the target's
        symbol and the model's own best one (scheduled sampling, Bengio et al. 2015); at 0 it runs
        free.

        Args:
            source: symbols, [S, N], or [N, S] with batch_first.
            target: symbols, the start symbol first, [T, N], or [N, T] with batch_first.
            teacher_forcing_ratio: share of steps that read the target's own symbol.
            lengths: steps of each source, [N]; by default every step that is not the encoder's
                padding.

        Returns:
            Scores before the softmax, [T, N, V] or [N, T, V]. Entry t scores target[t]; entry 0 is
            zero, for the start symbol is given.

        Raises:
            TypeError: source, target or lengths are not integers, or the ratio is not a number.
            ValueError: something is empty, a sequence has length 0, batches differ, the ratio is
                not between 0 and 1, or below 1 for a decoder that writes what it cannot read.
            IndexError: a symbol outside the vocabulary.
        """
        check_probability("teacher_forcing_ratio", teacher_forcing_ratio)
        inputs = self._time_first_target(source, target)[:-1]
        carry, memory = self.encode(source, lengths)
        if len(inputs) == 0:
            scores = carry.states[0].new_zeros(0, inputs.shape[1], self.decoder.output_size)
        elif teacher_forcing_ratio == 1.0:
            scores, _, _ = self.decoder.decode(inputs, carry, memory)
        else:
            check_reads_own(self.decoder.output_size, self.decoder.input_size)
            scores = self._sample_scheduled(inputs, carry, memory, teacher_forcing_ratio)
        scores = nn.functional.pad(scores, (0, 0, 0, 0, 1, 0))
        return scores.transpose(0, 1) if self.batch_first else scores

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> tuple[Carry, Memory | None]:
        """What the decoder starts from, and what it attends to (None without attention)."""
        output, states, lengths = self.encoder.encode(source, lengths)
        carry = self.decoder.start(self.bridge(states))
        if self.decoder.attention is None:
            return carry, None
        if self.encoder.reverse_source:
            # Back in the source's own order, so that the weights can be read.
            output = reverse_rows(output, lengths)
        return carry, self.decoder.attention.prepare(output, lengths)

    def attention_weights(
        self, source: Tensor, target: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Where the decoder looks as it predicts each symbol of the target after the first.

        Args:
            source: symbols, [S, N], or [N, S] with batch_first.
            target: symbols, the start symbol first, [T, N], or [N, T] with batch_first.
            lengths: steps of each source, [N].

        Returns:
            Weights that sum to 1 over the source, [N, T - 1, S].

        Raises:
            ValueError: the decoder has no attention.
        """
        if self.decoder.attention is None:
            raise ValueError("the decoder has no attention")
        inputs = self._time_first_target(source, target)[:-1]
        carry, memory = self.encode(source, lengths)
        if len(inputs) == 0:
            rows, steps, _ = memory.values.shape
            return memory.values.new_zeros(rows, 0, steps)
        return self.decoder.decode(inputs, carry, memory)[2]

    def _time_first_target(self, source: Tensor, target: Tensor) -> Tensor:
        check_tokens("source", source, self.encoder.input_size, values=False)
        check_tokens("target", target, self.decoder.input_size)
        rows = 0 if self.batch_first else 1
        if source.shape[rows] != target.shape[rows]:
            raise ValueError(
                f"source has {source.shape[rows]} sequences, target {target.shape[rows]}"
            )
        return target.t() if self.batch_first else target

    def _sample_scheduled(
        self, inputs: Tensor, carry: Carry, memory: Memory | None, ratio: float
    ) -> Tensor:
        scores = []
        # Thrown on the CPU, so that a seed gives the same coins on every device.
        coins = (torch.rand(inputs.shape) < ratio).to(inputs.device)
        tokens = inputs[0]
        for t in range(len(inputs)):
            score, carry = self.decoder.step(tokens, carry, memory)
            scores.append(score)
            if t + 1 < len(inputs):
                tokens = torch.where(coins[t + 1], inputs[t + 1], score.argmax(-1))
        return torch.stack(scores)
