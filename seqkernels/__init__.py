"""Fused LSTM, GRU and RNN kernels for PyTorch, as drop-in layers."""

import importlib

# First _interrupt: the others import torch.
from . import _interrupt, decode, dispatch, functional, nn  # noqa: F401
from .dispatch import backends, use_backend
from .explain import explain
from .nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, convert, patch, revert, unpatch

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "backends",
    "convert",
    "decode",
    "dispatch",
    "explain",
    "functional",
    "nn",
    "patch",
    "revert",
    "unpatch",
    "use_backend",
]


def __getattr__(name: str):
    # Imported when it is asked for: what it needs takes seconds, and few programs export.
    if name == "onnx":
        return importlib.import_module(f"{__name__}.onnx")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
