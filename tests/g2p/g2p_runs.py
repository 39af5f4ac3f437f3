"""Short runs and small trainers that the tests of this folder share."""

import torch

from seqkernels.g2p import ModelConfig, build_model
from seqkernels.g2p.data import PairBatches, Symbols
from seqkernels.g2p.run import Options
from seqkernels.g2p.train import Recipe, Trainer

CPU = torch.device("cpu")
QUICK = Options(minutes=0.02, hidden=32, words=400, models=2)


def make_trainer(dictionary, library="seqkernels", **options):
    torch.manual_seed(0)
    symbols = Symbols.of(dictionary)
    config = ModelConfig(hidden=64, **options)
    model = build_model(config, symbols, library)
    batches = PairBatches(dictionary, list(dictionary), symbols, 32)
    return Trainer(model, batches, Recipe()), symbols, config
