"""The worked example: a model that pronounces English words (grapheme to phoneme)."""

from .cli import main
from .data import read_dictionary, split_by_index, split_by_list
from .errors import G2PError
from .model import ModelConfig, build_model, pronounce
from .score import count_errors

__all__ = [
    "G2PError",
    "ModelConfig",
    "build_model",
    "count_errors",
    "main",
    "pronounce",
    "read_dictionary",
    "split_by_index",
    "split_by_list",
]
