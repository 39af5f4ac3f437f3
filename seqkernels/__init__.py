"""Fused LSTM, GRU and RNN kernels for PyTorch, as drop-in layers."""

from . import dispatch, functional
from .dispatch import backends, use_backend
from .explain import explain

__version__ = "0.1.0"

__all__ = ["backends", "dispatch", "explain", "functional", "use_backend"]
