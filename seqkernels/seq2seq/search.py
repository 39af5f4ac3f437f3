"""Greedy and beam search over a decoder, whole batches at a time."""

from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Memory
from .decoder import Carry, Decoder
from .fused import greedy as fused_greedy
from .fused import refusal


class Generation(NamedTuple):
    """What a search found: R targets for each of N sources, the best first.

    Attributes:
        tokens: symbols up to and with the end symbol, then padding (the decoder's padding symbol,
            or the end symbol where it has none), [T, N*R], or [N*R, T] with batch_first.
        lengths: symbols of each target, the end symbol included; 0 where there are fewer than R
            targets, [N*R].
        scores: log-probability after the length penalty; -inf where there is no target, [N*R].
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


class Task(NamedTuple):
    """What both searches need: the decoder, its special symbols and the limits."""

    decoder: Decoder
    bos_idx: int
    eos_idx: int
    max_length: int
    length_penalty: float

    @property
    def padding(self) -> int:
        """The symbol that stands after a target's end."""
        padding = self.decoder.padding_idx
        return self.eos_idx if padding is None else padding

    def normalise(self, log_probability: Tensor, length: Tensor | int) -> Tensor:
        """Log-probability over ((5 + length) / 6) ** alpha (Wu et al. 2016, equation 14)."""
        if self.length_penalty == 0.0:
            return log_probability
        return log_probability / ((5.0 + length) / 6.0) ** self.length_penalty


def greedy(
    task: Task, carry: Carry, memory: Memory | None, fused: bool | None = None
) -> Generation:
    """Take the best symbol at every step.

    Args:
        task: decoder and limits.
        carry: from `Decoder.start`.
        memory: from `Attention.prepare`, or None.
        fused: run all steps in one op; by default where that can run.

    Raises:
        RuntimeError: the fused op was asked for and cannot run; the message says why.
    """
    reason = "the step loop was asked for" if fused is False else refusal(task.decoder, carry)
    if fused and reason is not None:
        raise RuntimeError(f"fused greedy search cannot run: {reason}")
    if reason is None:
        sequences, lengths, scores = fused_greedy(
            task.decoder,
            carry,
            bos_idx=task.bos_idx,
            eos_idx=task.eos_idx,
            padding=task.padding,
            max_length=task.max_length,
        )
        return Generation(sequences, lengths, task.normalise(scores, lengths))
    rows, device = carry.states[0].shape[1], carry.states[0].device
    tokens = torch.full((rows,), task.bos_idx, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    scores = torch.zeros(rows, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    ask_every = _ask_every(device)
    written = []
    for t in range(task.max_length):
        logits, carry = task.decoder.step(tokens, carry, memory)
        tokens = logits.argmax(-1)
        chosen = torch.log_softmax(logits.float(), -1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        scores = scores + chosen.where(alive, 0.0)
        lengths += alive
        written.append(tokens.masked_fill(~alive, task.padding))
        alive = alive & (tokens != task.eos_idx)
        if (t + 1) % ask_every == 0 and not alive.any():
            break
    sequences = torch.stack(written)[: int(lengths.max())]
    return Generation(sequences, lengths, task.normalise(scores, lengths))


def beam(
    task: Task, carry: Carry, memory: Memory | None, beam_size: int, num_return_sequences: int
) -> Generation:
    """Keep the best hypotheses at every step (Sutskever et al. 2014, section 3.2).

    A hypothesis that takes the end symbol while among the best is removed from the beam and added
    to the finished ones, and the beam is one narrower from then on. A row ends when its beam is
    empty, or when no hypothesis in it can still overtake the finished ones that will be returned.
    What is unfinished at max_length competes with the finished by score.

    Args:
        task: decoder and limits.
        carry: from `Decoder.start`.
        memory: from `Attention.prepare`, or None.
        beam_size: hypotheses, K.
        num_return_sequences: how many to return, R.
    """
    rows, device = carry.states[0].shape[1], carry.states[0].device
    beams = _Beams(task, rows, beam_size, device)
    each = torch.arange(rows, device=device).repeat_interleave(beam_size)
    carry = carry.select(each)
    memory = None if memory is None else memory.select(each)
    tokens = torch.full((rows * beam_size,), task.bos_idx, device=device)
    ask_every = _ask_every(device)
    for t in range(task.max_length):
        logits, carry = task.decoder.step(tokens, carry, memory)
        parents, tokens = beams.advance(torch.log_softmax(logits.float(), -1), t)
        if (t + 1) % ask_every == 0 and beams.all_ended(t + 1, num_return_sequences):
            break
        carry = carry.select(parents)
    return beams.best(num_return_sequences)


def _ask_every(device: torch.device) -> int:
    # Asking whether all rows have ended waits for an accelerator, so it is asked now and then.
    return 1 if device.type == "cpu" else 8


class _Beams:
    """The hypotheses of every row: K places for live ones and K for finished ones."""

    def __init__(self, task: Task, rows: int, size: int, device: torch.device) -> None:
        self.task, self.rows, self.size = task, rows, size
        shape = (rows, size)
        # At first there is one hypothesis, the empty one.
        self.scores = torch.full(shape, -torch.inf, device=device)
        self.scores[:, 0] = 0.0
        self.tokens = torch.full(
            (*shape, task.max_length), task.padding, dtype=torch.long, device=device
        )
        self.finished_scores = torch.full(shape, -torch.inf, device=device)
        self.finished_tokens = self.tokens.clone()
        self.finished_lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self.finished_count = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.first_place = torch.arange(rows, device=device).unsqueeze(1) * size
        self.places = torch.arange(size, device=device)

    def advance(self, log_probabilities: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Extend every live hypothesis by one symbol.

        Args:
            log_probabilities: of the next symbol, [N*K, V].
            t: symbols written so far.

        Returns:
            Where each place's hypothesis came from and its new symbol, each [N*K].
        """
        vocabulary = log_probabilities.shape[-1]
        totals = self.scores.unsqueeze(-1) + log_probabilities.view(self.rows, self.size, -1)
        scores, index = totals.flatten(1).topk(self.size)
        parents = index.div(vocabulary, rounding_mode="floor")
        symbols = index % vocabulary
        room = self.places < self.size - self.finished_count
        kept = room & scores.isfinite()
        self.tokens = self.tokens.gather(
            1, parents.unsqueeze(-1).expand(-1, -1, self.task.max_length)
        )
        self.tokens[:, :, t] = symbols
        ended = kept & (symbols == self.task.eos_idx)
        self._finish(ended, scores, t + 1)
        self.scores = scores.masked_fill(~kept | ended, -torch.inf)
        if t + 1 == self.task.max_length:
            self._finish(self.scores.isfinite(), scores, t + 1)
        return (self.first_place + parents).flatten(), symbols.flatten()

    def all_ended(self, length: int, wanted: int) -> bool:
        """Whether no row can still improve the `wanted` hypotheses that it would return."""
        # A log-probability only falls. A positive penalty forgives length, so the most that a live
        # hypothesis can score is its present log-probability at the length that is cheapest.
        cheapest = self.task.max_length if self.task.length_penalty > 0 else length + 1
        bound = self.task.normalise(self.scores.amax(1), cheapest)
        worst = self.finished_scores.topk(wanted).values[:, -1]
        return bool((bound <= worst).all())

    def best(self, wanted: int) -> Generation:
        """The best finished hypotheses of every row."""
        scores, order = self.finished_scores.topk(wanted)
        lengths = self.finished_lengths.gather(1, order).flatten()
        index = order.unsqueeze(-1).expand(-1, -1, self.task.max_length)
        tokens = self.finished_tokens.gather(1, index).flatten(0, 1).t()
        return Generation(tokens[: int(lengths.max())], lengths, scores.flatten())

    def _finish(self, ended: Tensor, scores: Tensor, length: int) -> None:
        # The n-th to end in this step takes the n-th free place; the others write to a spare one.
        place = self.finished_count + ended.cumsum(1) - 1
        place = torch.where(ended, place, self.size)
        spare = torch.nn.functional.pad

        def put(into: Tensor, value: Tensor) -> Tensor:
            return spare(into, (0, 1)).scatter(1, place, value)[:, : self.size]

        self.finished_scores = put(self.finished_scores, self.task.normalise(scores, length))
        self.finished_lengths = put(self.finished_lengths, torch.full_like(place, length))
        tokens = spare(self.finished_tokens, (0, 0, 0, 1))
        index = place.unsqueeze(-1).expand(-1, -1, self.task.max_length)
        self.finished_tokens = tokens.scatter(1, index, self.tokens)[:, : self.size]
        self.finished_count = self.finished_count + ended.sum(1, keepdim=True)
