"""pytorch-forecasting: train inside `seqkernels.patch()`.

Its layers are subclasses of torch.nn's, which `convert` leaves alone; `patch` computes them.
"""

import contextlib

import lightning
import numpy
import pandas
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

import seqkernels


def series(count: int, days: int) -> TimeSeriesDataSet:
    """Noisy weekly waves of a month and what follows in the next week."""
    day, group = numpy.tile(numpy.arange(days), count), numpy.arange(count).repeat(days)
    noise = numpy.random.default_rng(0).normal(size=day.size)
    value = numpy.sin(2 * numpy.pi * (day + group) / 7) + noise / 5
    return TimeSeriesDataSet(
        pandas.DataFrame({"day": day, "group": group.astype(str), "value": value}),
        time_idx="day",
        target="value",
        group_ids=["group"],
        max_encoder_length=56,
        max_prediction_length=7,
        time_varying_known_reals=["day"],
        time_varying_unknown_reals=["value"],
    )


def train(ours: bool = True, steps: int = 30) -> float:
    """Train for some steps and return the last loss."""
    lightning.seed_everything(0, verbose=False)
    data = series(count=20, days=150)
    model = TemporalFusionTransformer.from_dataset(
        data, hidden_size=64, lstm_layers=2, log_interval=0
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with seqkernels.patch() if ours else contextlib.nullcontext():
        trainer.fit(model, data.to_dataloader(batch_size=64, num_workers=0))
    return trainer.callback_metrics["train_loss_step"].item()


if __name__ == "__main__":
    print(train())
