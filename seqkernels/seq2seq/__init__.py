"""Sequence to sequence: encoder, attention, decoder, training and search."""

from .attention import Attention, Memory
from .bridge import Bridge
from .decoder import Decoder
from .encoder import Encoder
from .ensemble import Ensemble
from .model import Seq2Seq
from .sampling import teacher_forcing_ratio
from .search import Generation
from .textbook import DecoderLSTM, EncoderLSTM

__all__ = [
    "Attention",
    "Bridge",
    "Decoder",
    "DecoderLSTM",
    "Encoder",
    "EncoderLSTM",
    "Ensemble",
    "Generation",
    "Memory",
    "Seq2Seq",
    "teacher_forcing_ratio",
]
