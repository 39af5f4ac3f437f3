"""One model or two: decided by the budget and the speed of this machine."""

import json
from dataclasses import replace

import pytest
import torch
from g2p_runs import CPU, QUICK, make_trainer

from seqkernels.g2p import ModelConfig
from seqkernels.g2p import run as run_module
from seqkernels.g2p.budget import EPOCHS_FOR_DROPOUT, EPOCHS_FOR_TWO, affordable_epochs, fit
from seqkernels.g2p.distributed import World
from seqkernels.g2p.run import run
from seqkernels.g2p.train import Recipe

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")


def test_a_short_budget_trains_one_model_with_little_dropout():
    assert fit(ModelConfig(), 0.9 * EPOCHS_FOR_DROPOUT) == ModelConfig(models=1, dropout=0.0)
    assert fit(ModelConfig(), 0.9 * EPOCHS_FOR_TWO) == ModelConfig(models=1, dropout=0.1)
    assert fit(ModelConfig(), EPOCHS_FOR_TWO) == ModelConfig(models=2)


class Clock:
    """Each look at it takes 12 s, as if 24 steps took half a second each."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        self.seconds += 12.0
        return self.seconds


def test_epochs_within_the_budget(dictionary, monkeypatch):
    trainer, symbols, config = make_trainer(dictionary)
    before = torch.random.get_rng_state()
    monkeypatch.setattr("seqkernels.g2p.compare.time", Clock())
    steps = min(24, len(trainer.batches))
    for minutes in (1.0, 5.0):
        found = affordable_epochs(
            config, symbols, trainer.batches, Recipe(minutes), "seqkernels", CPU, World()
        )
        assert found == pytest.approx(60 * minutes / (12 / steps) / len(trainer.batches))
    assert torch.equal(torch.random.get_rng_state(), before), "the seed decides the weights"


@pytest.mark.parametrize(("epochs", "models"), [(3.0, 1), (30.0, 2)])
def test_a_run_without_models_takes_what_fits(epochs, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "affordable_epochs", lambda *_: epochs)
    result = tmp_path / "result.json"
    run(replace(QUICK, models=None, json=result), CPU, World())
    assert json.loads(result.read_text())["model"]["models"] == models
    assert f"every word {epochs:.1f} times" in capsys.readouterr().out
