"""Writing targets: what one model and several together have in common."""

import math
from numbers import Real

import torch
from torch import Tensor

from . import search
from .checks import (
    check_choice,
    check_integer,
    check_reads_own,
    check_symbol,
    check_tokens,
)
from .evaluation import evaluated

STRATEGIES = ("greedy", "beam")


class GenerationMixin:
    """Adds `generate` to a module.

    The module has an `encoder`, a `decoder` that searches can step, `encode`, and the attributes
    `bos_idx`, `eos_idx` and `batch_first`.
    """

    def generate(
        self,
        source: Tensor,
        lengths: Tensor | None = None,
        max_length: int | None = None,
        strategy: str = "greedy",
        beam_size: int = 4,
        length_penalty: float = 0.0,
        num_return_sequences: int = 1,
        fused: bool | None = None,
    ) -> search.Generation:
        """Write the best target that the search finds for each source.

        Runs without gradients and in evaluation mode, and stops when all rows have ended. The
        modules themselves keep their modes, and other threads may train them meanwhile: see
        `seqkernels.seq2seq.evaluation`.

        Args:
            source: symbols, [S, N], or [N, S] with batch_first.
            lengths: steps of each source, [N]; by default every step that is not the encoder's
                padding.
            max_length: most symbols of a target, the end symbol included; by default twice the
                source's steps and ten more.
            strategy: `greedy` or `beam`.
            beam_size: hypotheses kept at a time, K.
            length_penalty: alpha of Wu et al. 2016, equation 14: a log-probability is divided by
                ((5 + length) / 6) ** alpha. 0 compares log-probabilities.
            num_return_sequences: targets of each source, best first, R; at most the beam's size.
            fused: run all steps of the greedy search in one op. By default where that can run,
                which takes a decoder without attention and without hooks; the tokens are those of
                the step loop.

        Returns:
            A `Generation`; the R targets of a source stand side by side in its N*R rows.

        Raises:
            TypeError: a number that is not an integer, or one of `forward`'s reasons.
            ValueError: an unknown strategy, a number out of range, bos_idx and eos_idx included, a
                decoder that writes what it cannot read, or one of `forward`'s reasons.
            IndexError: a symbol of the source outside the vocabulary.
            RuntimeError: the fused op was asked for and cannot run; the message says why.
        """
        if self.bos_idx is None or self.eos_idx is None:
            raise ValueError("generate needs bos_idx and eos_idx; pass them to Seq2Seq")
        bos_idx = check_symbol("bos_idx", self.bos_idx, self.decoder.input_size)
        eos_idx = check_symbol("eos_idx", self.eos_idx, self.decoder.output_size)
        check_reads_own(self.decoder.output_size, self.decoder.input_size)
        check_choice("strategy", strategy, STRATEGIES)
        beam_size = 1 if strategy == "greedy" else check_integer("beam_size", beam_size)
        wanted = check_integer("num_return_sequences", num_return_sequences, 1, beam_size)
        if fused and beam_size > 1:
            raise ValueError("fused: only the greedy search is one op")
        check_tokens("source", source, self.encoder.input_size, values=True)
        if max_length is None:
            max_length = 2 * source.shape[1 if self.batch_first else 0] + 10
        else:
            max_length = check_integer("max_length", max_length)
        _check_penalty(length_penalty, max_length)
        model = evaluated(self)
        task = search.Task(model.decoder, bos_idx, eos_idx, max_length, length_penalty)
        with torch.no_grad():
            carry, memory = model.encode(source, lengths)
            if beam_size == 1:
                found = search.greedy(task, carry, memory, fused)
            else:
                found = search.beam(task, carry, memory, beam_size, wanted)
        return found._replace(tokens=found.tokens.t()) if self.batch_first else found


def _check_penalty(penalty: float, max_length: int) -> None:
    """Raise an error where ((5 + max_length) / 6) ** penalty is not a number of float32."""
    if isinstance(penalty, bool) or not isinstance(penalty, Real):
        raise TypeError(f"length_penalty: expected a number, got {penalty!r}")
    # exp(85) is within the range, and so is its inverse.
    if not (abs(penalty) < 1e3 and abs(penalty) * math.log((5 + max_length) / 6) < 85):
        raise ValueError(
            f"length_penalty: {penalty} with max_length={max_length} exceeds the range of float32"
        )
