"""Drop-in recurrent layers and cells, and the swap of a whole model's layers for them."""

from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, revert
from .layers import GRU, LSTM, RNN
from .patch import patch, unpatch

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "convert",
    "patch",
    "revert",
    "unpatch",
]
