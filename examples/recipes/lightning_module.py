"""Lightning: call `seqkernels.convert` on the module before `Trainer.fit`.

Its parameters stay the same objects, so optimisers, callbacks and checkpoints need no change.
"""

import lightning
import torch

import seqkernels


class Forecaster(lightning.LightningModule):
    """Predicts the next value of a series from all values so far."""

    def __init__(self, features: int, hidden_size: int) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(features, hidden_size, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(hidden_size, features)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:  # noqa: D102
        (series,) = batch
        output, _ = self.rnn(series[:, :-1])
        loss = torch.nn.functional.mse_loss(self.head(output), series[:, 1:])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.Adam(self.parameters(), 2e-3)


def train(ours: bool = True, steps: int = 40) -> float:
    """Train for some steps and return the last loss."""
    lightning.seed_everything(0, verbose=False)
    series = torch.randn(640, 100, 8).cumsum(1) / 10
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(series), batch_size=32, shuffle=True
    )
    module = Forecaster(features=8, hidden_size=128)
    if ours:
        seqkernels.convert(module)
    trainer = lightning.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    print(train())
