"""speechbrain: call `seqkernels.convert` on the modules before they go to the `Brain`.

Its LSTM, GRU and RNN hold a layer of torch.nn; its LiGRU and QuasiRNN do not, and stay as they are.
"""

import speechbrain
import torch
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.RNN import LSTM

import seqkernels


class Recogniser(speechbrain.Brain):
    """Says of every frame which of its filters is loudest."""

    def compute_forward(self, batch, stage):  # noqa: D102
        features, _ = batch
        return self.modules.output(self.modules.encoder(features))

    def compute_objectives(self, scores, batch, stage):  # noqa: D102
        _, labels = batch
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())

    def on_stage_end(self, stage, loss, epoch=None):  # noqa: D102
        self.loss = loss


def train(ours: bool = True, steps: int = 20) -> float:
    """Train for some steps and return their mean loss."""
    torch.manual_seed(0)
    features = torch.randn(steps, 8, 150, 40)
    batches = list(zip(features, features.argmax(-1), strict=True))
    encoder = CRDNN(
        input_size=40,
        cnn_channels=[16, 32],
        activation=torch.nn.GELU,
        rnn_class=LSTM,
        rnn_layers=2,
        rnn_neurons=128,
        dnn_neurons=128,
    )
    modules = torch.nn.ModuleDict({"encoder": encoder, "output": torch.nn.Linear(128, 40)})
    if ours:
        seqkernels.convert(modules)
    brain = Recogniser(modules, lambda parameters: torch.optim.Adam(parameters, 1e-3))
    brain.fit(range(1), torch.utils.data.DataLoader(batches, batch_size=None), progressbar=False)
    return brain.loss


if __name__ == "__main__":
    print(train())
