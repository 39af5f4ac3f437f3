"""Fused LSTM, GRU and RNN kernels for PyTorch, as drop-in layers."""

from . import decode, dispatch, functional, nn
from .dispatch import backends, use_backend
from .explain import explain
from .nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, convert, revert

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
    "revert",
    "use_backend",
]
