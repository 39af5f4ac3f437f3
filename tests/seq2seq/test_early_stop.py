"""Beam search stops early only where nothing that is unfinished can still win."""

from typing import NamedTuple

import pytest
import torch
from seq2seq_models import BOS, EOS, PAD
from torch import Tensor

from seqkernels.seq2seq import search

STEPS, SYMBOLS = 6, 4


class AtStep(NamedTuple):
    """What a step of `Tables` needs: the step's number; the states give the number of rows."""

    states: tuple[Tensor, ...]
    step: int

    def select(self, rows: Tensor) -> "AtStep":
        return AtStep(tuple(s[:, rows] for s in self.states), self.step)


class Tables:
    """A decoder of random logits for each step and symbol, large enough to be nearly certain.

    That makes what an early stop must not miss common: a hypothesis which is behind, yet extended
    at almost no cost up to a length that the penalty favours.
    """

    padding_idx = PAD

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(STEPS, SYMBOLS, SYMBOLS, generator=generator) * 5.0

    def step(self, tokens: Tensor, carry: AtStep, memory: None) -> tuple[Tensor, AtStep]:
        return self.logits[carry.step][tokens], carry._replace(step=carry.step + 1)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -2.0])
def test_an_early_stop_changes_nothing(length_penalty, monkeypatch):
    stops = 0
    for seed in range(300):
        task = search.Task(Tables(seed), BOS, EOS, STEPS, length_penalty)
        asked = []
        ended = search._Beams.all_ended

        def counted(*arguments, ended=ended, asked=asked):
            asked.append(ended(*arguments))
            return asked[-1]

        found = []
        for answer in (counted, lambda *_: False):
            with monkeypatch.context() as patch:
                patch.setattr(search._Beams, "all_ended", answer)
                carry = AtStep((torch.zeros(1, 1, 1),), 0)
                found.append(search.beam(task, carry, None, 4, 2))
        assert all(map(torch.equal, *found)), seed
        stops += len(asked) < STEPS
    assert stops > 50
