"""The model of the example, and how it pronounces words."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..cells import CELLS
from ..seq2seq import Decoder, Encoder, Ensemble, Seq2Seq
from .data import BOS, EOS, PAD, Pronunciation, Symbols
from .errors import G2PError

Model = Seq2Seq | Ensemble
LONGEST = 40  # phonemes of an output; the longest in the dictionary has 28


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape.

    Attributes:
        cell: `lstm` or `gru`.
        hidden: width of the decoder's state; the encoder has half of it in each direction, or,
            without attention, all of it in one.
        attention: `general`, `dot`, `additive` or `none`. Without attention the encoder reads the
            word from its end and the decoder starts from its final state alone, the textbook model.
        embedding: width of an embedding.
        layers: recurrent layers of encoder and decoder each.
        dropout: probability between layers and before the output.
        models: models that are trained side by side and average their probabilities.
    """

    cell: str = "lstm"
    hidden: int = 256
    attention: str = "general"
    embedding: int = 64
    layers: int = 1
    dropout: float = 0.2
    models: int = 1


def build_model(config: ModelConfig, symbols: Symbols, library: str = "seqkernels") -> Model:
    """Build the model; `library="torch"` builds the same one from torch.nn, to compare with."""
    members = [_one_model(config, symbols, library) for _ in range(config.models)]
    return members[0] if len(members) == 1 else Ensemble(members)


def _one_model(config: ModelConfig, symbols: Symbols, library: str) -> Seq2Seq:
    attends = config.attention != "none"
    # Dropout on embeddings costs 2 points of WER where a training lasts a few epochs.
    common = dict(
        num_layers=config.layers,
        cell=config.cell,
        dropout=config.dropout,
        embedding_dropout=0.0,
    )
    encoder = Encoder(
        symbols.source_size,
        config.embedding,
        config.hidden // 2 if attends else config.hidden,
        bidirectional=attends,
        reverse_source=not attends,
        library=library,
        **common,
    )
    decoder = Decoder(
        symbols.target_size,
        config.embedding,
        config.hidden,
        attention=config.attention if attends else None,
        memory_size=encoder.output_size,
        padding_idx=PAD,
        library=library,
        **common,
    )
    return Seq2Seq(encoder, decoder, bos_idx=BOS, eos_idx=EOS)


def parameter_count(config: ModelConfig, symbols: Symbols) -> int:
    """How many numbers `build_model` would allocate, without building anything."""
    gates = CELLS.get(config.cell, CELLS["rnn_tanh"]).gates
    hidden, embedding, attends = config.hidden, config.embedding, config.attention != "none"

    def stack(width: int, directions: int) -> int:
        layer = gates * width * (width + 2)
        first = layer + gates * width * embedding
        others = (config.layers - 1) * (layer + gates * width * directions * width)
        return directions * (first + others)

    count = (symbols.source_size + symbols.target_size) * embedding
    count += stack(hidden // 2, 2) if attends else stack(hidden, 1)
    count += stack(hidden, 1) + symbols.target_size * (hidden + 1)
    if attends:
        count += 2 * hidden * hidden  # the layer that merges
        count += {
            "dot": 0,
            "general": hidden * hidden,
            "additive": 2 * hidden * hidden + 2 * hidden,
        }[config.attention]
    return config.models * count


def check_memory(config: ModelConfig, symbols: Symbols, device: torch.device) -> None:
    """Raise a G2PError where the parameters of a training cannot fit in the device's memory."""
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # In float32: weights, gradients and the two moments of Adam.
    needed = 16 * parameter_count(config, symbols)
    if needed > available:
        raise G2PError(
            f"hidden {config.hidden}, layers {config.layers}, models {config.models}: the "
            f"parameters of such a training take {needed:,} bytes, {device} has {available:,}"
        )


def members(model: Model) -> list[Seq2Seq]:
    """The models that write together; of one model itself."""
    return list(model.models) if isinstance(model, Ensemble) else [model]


class Answer(NamedTuple):
    """A pronunciation and the probability that the model gives it."""

    pronunciation: Pronunciation
    probability: float


def pronounce(
    model: Model,
    symbols: Symbols,
    words: Sequence[str],
    *,
    beam: int = 1,
    best: int = 1,
    batch_size: int = 512,
) -> list[list[Answer]]:
    """Pronounce words, in batches of equal length.

    Args:
        model: trained.
        symbols: its letters and phonemes.
        words: of known letters.
        beam: hypotheses of the search; 1 is the greedy search.
        best: answers for each word, at most `beam`.
        batch_size: words searched together.

    Returns:
        For each word its answers, the best first.

    Raises:
        G2PError: a word is empty or has an unknown letter, or the model's probabilities are not
            numbers.
    """
    device = next(model.parameters()).device
    encoded = [symbols.encode_word(word) for word in words]
    order = sorted(range(len(words)), key=lambda i: len(encoded[i]))
    answers: list[list[Answer]] = [[] for _ in words]
    start = 0
    while start < len(order):
        length = len(encoded[order[start]])
        stop = start
        while (
            stop < len(order) and stop - start < batch_size and len(encoded[order[stop]]) == length
        ):
            stop += 1
        rows = order[start:stop]
        start = stop
        found = model.generate(
            torch.tensor([encoded[i] for i in rows], device=device).t(),
            max_length=LONGEST,
            strategy="beam" if beam > 1 else "greedy",
            beam_size=beam,
            num_return_sequences=best,
        )
        finite = found.scores[::best].isfinite().tolist()
        if not all(finite):
            word = words[rows[finite.index(False)]]
            raise G2PError(
                f"{word!r}: the model's probabilities are not finite, for its weights are not"
            )
        columns = found.tokens.t().tolist()
        for place, (ids, score) in enumerate(zip(columns, found.scores.tolist(), strict=True)):
            if not math.isinf(score):
                answer = Answer(symbols.decode_pronunciation(ids), math.exp(score))
                answers[rows[place // best]].append(answer)
    return answers
