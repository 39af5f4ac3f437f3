"""The same training steps with seqkernels and with torch.nn, side by side."""

import statistics
import time
from dataclasses import dataclass
from itertools import islice

import torch

from .data import Batch, PairBatches, Symbols, tokens_of
from .errors import G2PError
from .model import ModelConfig, build_model
from .train import Recipe, Trainer

BATCHES = 12  # of one timed block


@dataclass(frozen=True)
class Comparison:
    """Training speed of both libraries, in tokens per second, medians over blocks."""

    seqkernels: float
    torch: float


def compare(
    config: ModelConfig,
    symbols: Symbols,
    batches: PairBatches,
    recipe: Recipe,
    device: torch.device,
    *,
    seconds: float = 20.0,
) -> Comparison:
    """Train two equal models on the same batches, in turns, after checking that they agree.

    Args:
        config: shape of both models.
        symbols: letters and phonemes.
        batches: training pairs.
        recipe: how to train.
        device: where.
        seconds: time to spend, about.

    Raises:
        G2PError: the losses of the first steps differ, so that a speed would mean nothing.
    """
    block = first_batches(batches, BATCHES, recipe, device)
    tokens = sum(tokens_of(batch) for batch in block)
    trainers = []
    for library in ("seqkernels", "torch"):
        model = build_model(config, symbols, library).to(device)
        if trainers:
            model.load_state_dict(trainers[0].model.state_dict())
        trainers.append(Trainer(model, batches, recipe))
    _check_losses(trainers, block[0])
    for trainer in trainers:
        timed(trainer, block[:3])
    times: list[list[float]] = [[], []]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[0]) < 3:
        for trainer, own in zip(trainers, times, strict=True):
            own.append(timed(trainer, block))
    return Comparison(*(round(tokens / statistics.median(own), 1) for own in times))


def _check_losses(trainers: list[Trainer], batch: Batch) -> None:
    losses = []
    for trainer in trainers:
        trainer.model.eval()
        losses.append([trainer.step(batch, 1e-4).item() for _ in range(3)])
        trainer.model.train()
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    if not difference < 1e-3:
        raise G2PError(f"the losses of seqkernels and torch.nn differ by {difference:.2g}")


def first_batches(
    batches: PairBatches, count: int, recipe: Recipe, device: torch.device
) -> list[Batch]:
    """As many batches of an epoch as there are, at most `count`, on the device."""
    generator = torch.Generator().manual_seed(recipe.seed)
    return [
        tuple(part.to(device) for part in batch)
        for batch in islice(batches.epoch(generator), count)
    ]


def timed(trainer: Trainer, block: list[Batch]) -> float:
    """Seconds of a training step on each of the batches."""
    begin = time.perf_counter()
    for batch in block:
        loss = trainer.step(batch, trainer.recipe.learning_rate)
    loss.item()
    return time.perf_counter() - begin
