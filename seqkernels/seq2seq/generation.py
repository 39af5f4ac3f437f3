"""Writing targets: what one model and several together have in common."""

import torch
from torch import Tensor

from . import search
from .checks import check_count, check_tokens

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

        Runs in evaluation mode and without gradients, and stops when all rows have ended.

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
            ValueError: an unknown strategy or a number out of range, or one of `forward`'s reasons.
            IndexError: a symbol outside the vocabulary, bos_idx and eos_idx included.
            RuntimeError: the fused op was asked for and cannot run; the message says why.
        """
        if self.bos_idx is None or self.eos_idx is None:
            raise ValueError("generate needs bos_idx and eos_idx; pass them to Seq2Seq")
        self._check_special("bos_idx", self.bos_idx, self.decoder.input_size)
        self._check_special("eos_idx", self.eos_idx, self.decoder.output_size)
        if strategy not in STRATEGIES:
            raise ValueError(
                f"unknown strategy {strategy!r}; expected one of {', '.join(STRATEGIES)}"
            )
        beam_size = 1 if strategy == "greedy" else beam_size
        check_count("beam_size", beam_size)
        check_count("num_return_sequences", num_return_sequences)
        if num_return_sequences > beam_size:
            raise ValueError(
                f"num_return_sequences: expected 1 to {beam_size}, the beam's size, got "
                f"{num_return_sequences}"
            )
        if fused and beam_size > 1:
            raise ValueError("fused: only the greedy search is one op")
        check_tokens("source", source, self.encoder.input_size, values=True)
        if max_length is None:
            max_length = 2 * source.shape[1 if self.batch_first else 0] + 10
        check_count("max_length", max_length)
        task = search.Task(self.decoder, self.bos_idx, self.eos_idx, max_length, length_penalty)
        # Parts of a model may be in different modes, such as a frozen encoder in evaluation.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                carry, memory = self.encode(source, lengths)
                if beam_size == 1:
                    found = search.greedy(task, carry, memory, fused)
                else:
                    found = search.beam(task, carry, memory, beam_size, num_return_sequences)
        finally:
            for module, training in modes:
                module.training = training
        return found._replace(tokens=found.tokens.t()) if self.batch_first else found

    def _check_special(self, name: str, symbol: int, size: int) -> None:
        if not 0 <= symbol < size:
            raise IndexError(f"{name}: id {symbol} is outside the vocabulary, 0 to {size - 1}")
