"""Checkpoints: a safetensors file with weights, optimiser state, configuration and progress."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .data import Symbols
from .errors import G2PError, require
from .model import Model, ModelConfig, build_model, parameter_count
from .schema import read_description

FORMAT = "seqkernels-g2p-1"
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # the optimiser's tensors of a parameter


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
        """The model with its weights."""
        model = build_model(self.config, self.symbols, library)
        model.load_state_dict(self.weights)
        return model


def check_writable(path: Path) -> None:
    """Raise a G2PError where `write_atomically` could not, before a training's time is spent."""
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            raise G2PError(f"{path}: there is no folder {folder}")
        if path.is_dir():
            raise G2PError(f"{path} is a folder; name a file")
        temporary = _temporary(path)
        temporary.touch()
        temporary.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise G2PError(f"{path} cannot be written to: {reason}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: an interruption leaves the old one.

    Raises:
        G2PError: the folder is missing or cannot be written to.
    """
    temporary = _temporary(path)
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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of an older one.

    Raises:
        G2PError: it cannot be written, or a number in it is not finite; the older one stays.
    """
    require("safetensors", "checkpoints need")
    from safetensors.torch import save

    tensors = {f"model.{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer.items()}
    _check_finite(path, tensors)
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

    Nothing is built or allocated before the description and every tensor's size are known to fit.

    Raises:
        G2PError: it is missing, truncated or something else, or a field, a size or a number in it
            cannot be; the message says which, and what was expected.
    """
    require("safetensors", "checkpoints need")
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise G2PError(f"there is no checkpoint {path}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise G2PError(f"{path} is not a checkpoint of seqkernels.g2p ({FORMAT})")
            described = read_description(path, metadata)
            config = ModelConfig(**described["config"])
            letters, phonemes = described["symbols"]["letters"], described["symbols"]["phonemes"]
            symbols = Symbols(tuple(letters), tuple(phonemes))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            _check_kinds(path, config, symbols, kinds)
            tensors = {name: file.get_tensor(name) for name in slices}
    except (SafetensorError, OSError) as error:
        raise G2PError(f"{path} is not a whole safetensors file: {error}") from error
    _check_finite(path, tensors)
    weights, optimizer = _part(tensors, "model."), _part(tensors, "optimizer.")
    return Checkpoint(config, symbols, described["progress"], weights, optimizer)


def _check_kinds(
    path: Path, config: ModelConfig, symbols: Symbols, kinds: dict[str, tuple[tuple, str]]
) -> None:
    """Check the shape and dtype of every tensor against the configuration.

    The optimiser's tensors may be missing: it takes them to continue a training, not to speak.
    """
    unfit = f"{path} does not fit its own configuration"
    if config.attention != "none" and config.hidden % 2:
        raise G2PError(f"{unfit}: hidden is {config.hidden}, expected an even number for attention")
    wanted = parameter_count(config, symbols)
    held = sum(math.prod(shape) for n, (shape, _) in kinds.items() if n.startswith("model."))
    if wanted != held:
        raise G2PError(f"{unfit}: that takes {wanted:,} weights, it holds {held:,}")
    with torch.device("meta"):
        weights = build_model(config, symbols).state_dict()
    expected = {f"model.{name}": tuple(value.shape) for name, value in weights.items()}
    missing = expected.keys() - kinds.keys()
    for name, value in weights.items():
        for kind in _ADAM:
            expected[f"optimizer.{name}.{kind}"] = () if kind == "step" else tuple(value.shape)
    for name in sorted(missing | (kinds.keys() - expected.keys())):
        raise G2PError(f"{unfit}: {name} is {'missing' if name in missing else 'no part of it'}")
    for name, (shape, dtype) in kinds.items():
        if (shape, dtype) != (expected[name], "F32"):
            raise G2PError(
                f"{unfit}: {name} is {dtype} {list(shape)}, expected F32 {list(expected[name])}"
            )


def _check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise G2PError(f"{path}: {name} has numbers that are not finite, so the model is lost")


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
    """Undo `optimizer_tensors`, whose shapes `load_checkpoint` has checked.

    Raises:
        G2PError: the tensors are not a whole state of Adam for this model.
    """
    for name, parameter in model.named_parameters():
        for kind in _ADAM:
            value = tensors.get(f"{name}.{kind}")
            if value is None:
                raise G2PError(f"the checkpoint's optimiser state lacks {name}.{kind}")
            optimizer.state[parameter][kind] = value.to(parameter.device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
