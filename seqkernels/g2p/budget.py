"""What a budget of minutes is best spent on: one model, or two that write together."""

from dataclasses import replace

import torch

from .compare import first_batches, timed
from .data import PairBatches, Symbols
from .distributed import World
from .model import ModelConfig, build_model
from .train import Recipe, Trainer

# Passes of one model over the training pairs from which on two models with half of the passes each
# write fewer wrong words, and below which dropout costs more than it gives. Read off single runs.
EPOCHS_FOR_TWO = 16.0
EPOCHS_FOR_DROPOUT = 5.0
STEPS = 24  # that are timed, after a few that are not


def fit(config: ModelConfig, epochs: float) -> ModelConfig:
    """The configuration for a budget in which one model would see every pair `epochs` times.

    A model that sees every pair a few times alone is far from learning them by heart: dropout
    would only slow it down.
    """
    if epochs >= EPOCHS_FOR_TWO:
        return replace(config, models=2)
    return replace(config, models=1, dropout=0.1 if epochs >= EPOCHS_FOR_DROPOUT else 0.0)


def affordable_epochs(
    config: ModelConfig,
    symbols: Symbols,
    batches: PairBatches,
    recipe: Recipe,
    library: str,
    device: torch.device,
    world: World,
) -> float:
    """Passes of one model over the training pairs within the budget, by the speed of a few steps.

    Args:
        config: of the model; how many it asks for is ignored.
        symbols: letters and phonemes.
        batches: training pairs.
        recipe: with the budget.
        library: of the layers, `seqkernels` or `torch`.
        device: where the training will run.
        world: the processes that share it; all get the first one's answer.
    """
    with torch.random.fork_rng():
        model = build_model(replace(config, models=1), symbols, library).to(device)
        trainer = Trainer(model, batches, recipe)
        model.train()
        few = first_batches(batches, STEPS + 4, recipe, device)
        timed(trainer, few[STEPS:] or few[:1])
        seconds_per_step = timed(trainer, few[:STEPS]) / min(STEPS, len(few))
    steps = 60.0 * recipe.minutes / seconds_per_step
    return world.agree(steps * world.size / len(batches), device)
