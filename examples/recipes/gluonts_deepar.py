"""gluonts: call `seqkernels.convert` where the estimator makes its module.

The estimator builds its network inside `train`, so a subclass converts what is built there.
"""

import tempfile

import numpy
import pandas
import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator

import seqkernels


class Estimator(DeepAREstimator):
    """DeepAR on seqkernels."""

    def create_lightning_module(self):  # noqa: D102
        return seqkernels.convert(super().create_lightning_module())


def series(count: int, days: int) -> ListDataset:
    """Noisy weekly waves."""
    start, day = pandas.Period("2024-01-01", "D"), numpy.arange(days)
    noise = numpy.random.default_rng(0).normal(size=(count, days))
    waves = 5 + numpy.sin(2 * numpy.pi * (day + numpy.arange(count)[:, None]) / 7) + noise / 5
    return ListDataset([{"start": start, "target": wave} for wave in waves], freq="D")


def train(ours: bool = True, steps: int = 40) -> float:
    """Train for some steps and return the last loss."""
    numpy.random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:  # for checkpoints, which gluonts always writes
        estimator = (Estimator if ours else DeepAREstimator)(
            freq="D",
            prediction_length=28,
            context_length=84,
            hidden_size=64,
            num_batches_per_epoch=steps,
            trainer_kwargs={
                "max_epochs": 1,
                "default_root_dir": folder,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        )
        output = estimator.train_model(series(count=100, days=400))
    return output.trainer.callback_metrics["train_loss"].item()


if __name__ == "__main__":
    print(train())
