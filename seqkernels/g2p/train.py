"""Training to a budget of wall-clock time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .data import PAD, Batch, Dictionary, PairBatches, Symbols, tokens_of
from .distributed import World
from .errors import G2PError
from .model import Model, members, pronounce
from .score import ErrorCounts, count_errors

# Of Adam, by cell. A GRU at the LSTM's rate ends two points of WER worse.
LEARNING_RATES = {"lstm": 4e-3, "gru": 2e-3}


@dataclass(frozen=True)
class Recipe:
    """How to train; the learning rate follows the share of the budget that is used up.

    Attributes:
        minutes: wall-clock budget, development scores included.
        seed: of weights, order and dropout.
        batch_size: pairs of a step, in each process.
        learning_rate: of Adam, after the warm-up.
        warm_up: steps of linear rise.
        hold: share of the budget with the full rate.
        last: final rate, as a share of the full one.
        clip: largest norm of a step's gradient.
        dev_scores: times that the development words are scored on the way.
        dev_words: of these, words that are scored on the way; all are scored at the end.
    """

    minutes: float = 5.0
    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 4e-3
    warm_up: int = 200
    hold: float = 0.1
    last: float = 0.01
    clip: float = 1.0
    dev_scores: int = 10
    dev_words: int = 1500

    def rate(self, progress: float, step: int) -> float:
        """The learning rate when `progress` of the budget is used up and `step` steps are done."""
        decay = max(0.0, progress - self.hold) / (1.0 - self.hold)
        falling = 1.0 - (1.0 - self.last) * min(1.0, decay)
        return self.learning_rate * falling * min(1.0, (step + 1) / self.warm_up)


@dataclass
class Progress:
    """How far a training went; its fields are JSON values.

    Attributes:
        seconds: training time so far.
        steps: optimiser steps.
        epochs: passes over the training pairs, fractions included.
        tokens: letters, phonemes and end symbols read; of several processes, this one's share
            times their number.
        busy_seconds: time spent in steps, without development scores.
        processor_seconds: what this process got of the processors meanwhile; on a machine that is
            shared, less than seconds times threads.
        loss: (seconds, mean cross entropy of a phoneme) on the way.
        dev: (seconds, WER, PER) on the way.
    """

    seconds: float = 0.0
    steps: int = 0
    epochs: float = 0.0
    tokens: float = 0.0
    busy_seconds: float = 0.0
    processor_seconds: float = 0.0
    loss: list[tuple[float, float]] = field(default_factory=list)
    dev: list[tuple[float, float, float]] = field(default_factory=list)


def batch_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a phoneme, in nats, for each model that writes, [models].

    Each has the whole target in one decoder call.
    """
    source, target = batch
    scores = model(source, target)
    each = scores if isinstance(scores, tuple) else (scores,)
    wanted = target[1:].flatten()
    return torch.stack(
        [
            nn.functional.cross_entropy(own[1:].flatten(0, 1), wanted, ignore_index=PAD)
            for own in each
        ]
    )


class Trainer:
    """A model, its optimiser and its data.

    Args:
        model: trained in place.
        batches: training pairs.
        recipe: how to train.
        world: the processes that train together.
        progress: of an interrupted training that this one continues.
    """

    def __init__(
        self,
        model: Model,
        batches: PairBatches,
        recipe: Recipe,
        world: World | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.batches = batches
        self.recipe = recipe
        self.world = world or World()
        self.progress = progress or Progress()
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.Adam(
            model.parameters(), recipe.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.wrapped: nn.Module = model
        if self.world.size > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(model)

    def step(self, batch: Batch, learning_rate: float) -> Tensor:
        """One optimiser step; returns the loss before it, the mean over the models."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        losses = batch_losses(self.wrapped, batch)
        self.optimizer.zero_grad()
        # Each model learns as if alone: from its own loss, clipped by its own norm.
        losses.sum().backward()
        for model in members(self.model):
            nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip)
        self.optimizer.step()
        return losses.detach().mean()

    def run(
        self,
        score: Callable[[], ErrorCounts],
        *,
        show: Callable[[Progress, float], None] = lambda progress, share: None,
        save: Callable[[Progress], None] = lambda progress: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train until the budget is used up, or until interrupted after a step.

        Args:
            score: scores development words on the way.
            show: told the progress and the share of the budget after each step.
            save: called after each development score and at the end.
            interrupted: asked after each step.

        Raises:
            G2PError: the loss is not a finite number.
        """
        budget = self.recipe.minutes * 60.0
        progress, recipe = self.progress, self.recipe
        self.model.train()
        clock = _Clock(self.world, self.device, progress.seconds)
        begun_at = progress.seconds
        processor_base = progress.processor_seconds - time.process_time()
        next_score = self._next_score(progress.seconds, budget)
        losses: list[float] = []
        while progress.seconds < budget:
            for batch in self._epoch():
                tokens = tokens_of(batch)
                batch = tuple(part.to(self.device) for part in batch)
                rate = recipe.rate(progress.seconds / budget, progress.steps)
                before = progress.seconds
                losses.append(self.step(batch, rate).item())
                progress.seconds = clock.seconds()
                progress.busy_seconds += progress.seconds - before
                progress.processor_seconds = processor_base + time.process_time()
                progress.steps += 1
                progress.epochs += self.world.size / len(self.batches)
                progress.tokens += tokens * self.world.size
                # What the first process finds: all have the same gradients, and soon the same loss.
                lost = not math.isfinite(losses[-1])
                found = self.world.agree(-1.0 if lost else float(interrupted()), self.device)
                if found < 0:
                    raise G2PError(
                        f"the training has diverged: the loss of step {progress.steps} is "
                        f"{losses[-1]}"
                    )
                stop = found > 0
                if len(losses) == 50 or stop:
                    mean = sum(losses) / len(losses)
                    progress.loss.append((round(progress.seconds, 2), round(mean, 5)))
                    losses.clear()
                show(progress, progress.seconds / budget)
                if stop or progress.seconds >= budget:
                    break
                if progress.seconds >= next_score:
                    counts = score()
                    self.model.train()
                    progress.seconds = clock.seconds()
                    progress.dev.append((round(progress.seconds, 2), counts.wer, counts.per))
                    show(progress, progress.seconds / budget)
                    save(progress)
                    next_score = self._next_score(progress.seconds, budget)
            else:
                continue
            break
        if progress.seconds > begun_at:
            save(progress)
        return progress

    def _epoch(self):
        # Each process takes its own batches; the last, incomplete round is left out.
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000003 + self.progress.steps)
        size, rank = self.world.size, self.world.rank
        whole = len(self.batches) - len(self.batches) % size
        if whole == 0:
            raise ValueError(f"{len(self.batches)} batches are too few for {size} processes")
        for i, batch in enumerate(self.batches.epoch(generator)):
            if i < whole and i % size == rank:
                yield batch

    def _next_score(self, seconds: float, budget: float) -> float:
        every = budget / (self.recipe.dev_scores + 1)
        return (seconds // every + 1) * every


class _Clock:
    """Training time, the same in all processes, continued from an earlier run."""

    def __init__(self, world: World, device: torch.device, seconds: float) -> None:
        self.world, self.device = world, device
        self.begin = time.monotonic() - seconds

    def seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.world.agree(time.monotonic() - self.begin, self.device)


def score_words(
    model: Model,
    symbols: Symbols,
    dictionary: Dictionary,
    words: list[str],
    *,
    beam: int = 1,
    world: World | None = None,
) -> ErrorCounts:
    """Error counts of the model's best output for each word; each process takes its share."""
    world = world or World()
    own = words[world.rank :: world.size]
    answers = pronounce(model, symbols, own, beam=beam)
    counts = count_errors(
        (answer[0].pronunciation if answer else () for answer in answers),
        (dictionary[word] for word in own),
    )
    device = next(model.parameters()).device
    parts = [counts.words, counts.wrong, counts.edits, counts.phonemes]
    return ErrorCounts(*(round(part) for part in world.total(parts, device)))
