"""Checkpoints: a safetensors file with weights, optimiser state, configuration and progress."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .data import Symbols
from .errors import G2PError, require
from .model import Model, ModelConfig, build_model

FORMAT = "seqkernels-g2p-1"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        config: shape of the model.
        symbols: its letters and phonemes.
        progress: how far the training went, JSON values by name.
        weights: the model's parameters by name.
        optimizer: the optimiser's tensors, by parameter and kind.
    """

    config: ModelConfig
    symbols: Symbols
    progress: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def build(self, library: str = "seqkernels") -> Model:
        """The model with its weights.

        Raises:
            G2PError: the weights are not those of the configuration.
        """
        try:
            model = build_model(self.config, self.symbols, library)
            model.load_state_dict(self.weights)
        except (RuntimeError, TypeError, ValueError) as error:
            raise G2PError(f"the checkpoint does not fit its own configuration: {error}") from error
        return model


def check_writable(path: Path) -> None:
    """Raise a G2PError where `write_atomically` could not, before a training's time is spent."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise G2PError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise G2PError(f"{path} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise G2PError(f"{path}: the folder {folder} cannot be written to")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: an interruption leaves the old one.

    Raises:
        G2PError: the folder is missing or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise G2PError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of an older one."""
    require("safetensors", "checkpoints need")
    from safetensors.torch import save

    tensors = {f"model.{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer.items()}
    # Tensors may not share storage in the file.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(checkpoint.config)),
        "symbols": json.dumps(asdict(checkpoint.symbols)),
        "progress": json.dumps(checkpoint.progress),
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        G2PError: it is missing, truncated, or something else.
    """
    require("safetensors", "checkpoints need")
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise G2PError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise G2PError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise G2PError(f"{path} is not a checkpoint of seqkernels.g2p ({FORMAT})")
    try:
        symbols = json.loads(metadata["symbols"])
        return Checkpoint(
            ModelConfig(**json.loads(metadata["config"])),
            Symbols(tuple(symbols["letters"]), tuple(symbols["phonemes"])),
            json.loads(metadata["progress"]),
            _part(tensors, "model."),
            _part(tensors, "optimizer."),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise G2PError(f"{path}: its description is damaged: {error!r}") from error


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The optimiser's state, named by parameter and kind."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{kind}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Undo `optimizer_tensors`.

    Raises:
        G2PError: the tensors are not a whole state of Adam for this model.
    """
    parameters = dict(model.named_parameters())
    expected = {
        f"{name}.{kind}": torch.Size() if kind == "step" else parameter.shape
        for name, parameter in parameters.items()
        for kind in ("step", "exp_avg", "exp_avg_sq")
    }
    for key in sorted(expected.keys() ^ tensors.keys()):
        state = "missing" if key in expected else "of no parameter"
        raise G2PError(f"the checkpoint's optimiser state is damaged: {key} is {state}")
    for key, value in tensors.items():
        if value.shape != expected[key]:
            raise G2PError(
                f"the checkpoint's optimiser state is damaged: {key} is {list(value.shape)}, "
                f"expected {list(expected[key])}"
            )
        name, _, kind = key.rpartition(".")
        place = "cpu" if kind == "step" else parameters[name].device
        optimizer.state[parameters[name]][kind] = value.to(place)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
