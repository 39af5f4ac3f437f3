"""Short runs and small trainers that the tests of this folder share."""

import json
from dataclasses import asdict

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from seqkernels.g2p import ModelConfig, build_model
from seqkernels.g2p.checkpoint import Checkpoint, save_checkpoint
from seqkernels.g2p.data import PairBatches, Symbols
from seqkernels.g2p.run import Options
from seqkernels.g2p.train import Progress, Recipe, Trainer

CPU = torch.device("cpu")
QUICK_ARGUMENTS = ["--minutes", "0.02", "--models", "2", "--hidden", "32", "--words", "400"]
QUICK = Options(minutes=0.02, hidden=32, words=400, models=2)


def make_trainer(dictionary, library="seqkernels", **options):
    torch.manual_seed(0)
    symbols = Symbols.of(dictionary)
    config = ModelConfig(hidden=64, **options)
    model = build_model(config, symbols, library)
    batches = PairBatches(dictionary, list(dictionary), symbols, 32)
    return Trainer(model, batches, Recipe()), symbols, config


def progress_of(split="none", **fields):
    """The progress in a checkpoint, of a training that has not begun."""
    return asdict(Progress()) | {"seed": 0, "test": split} | fields


def write_checkpoint(path, dictionary, **options):
    """A checkpoint of a small model that was not trained, and the model."""
    trainer, symbols, config = make_trainer(dictionary, **options)
    weights = trainer.model.state_dict()
    save_checkpoint(path, Checkpoint(config, symbols, progress_of(), weights, {}))
    return trainer.model


def edit(path, change, write=json.dumps):
    """Change a checkpoint's description (a part's fields by its name) and tensors in place.

    Args:
        path: of the checkpoint.
        change: given the description and the tensors, it changes them.
        write: makes a part's text of its fields.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    form = metadata.pop("format")
    description = {part: json.loads(metadata[part]) for part in sorted(metadata)}
    change(description, tensors)
    metadata = {part: write(fields) for part, fields in description.items()}
    save_file(tensors, path, metadata | {"format": form})
