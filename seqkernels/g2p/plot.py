"""The plot of a training: loss, error rates and where attention looks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import figures
from ..seq2seq.evaluation import evaluated
from .data import Symbols
from .model import Model, pronounce
from .train import Progress


class Attention(NamedTuple):
    """Weights of a word's letters at each phoneme and at the end, [phonemes + 1, letters]."""

    word: str
    phonemes: Sequence[str]
    weights: list[list[float]]


def training_plot(progress: Progress, model: Model, symbols: Symbols, word: str) -> str:
    """An SVG document.

    Args:
        progress: of the training.
        model: the trained model.
        symbols: its letters and phonemes.
        word: whose attention is shown, where the model attends.
    """
    attends = model.decoder.attention is not None
    return draw(progress, _attention(model, symbols, word) if attends else None)


def draw(progress: Progress, attention: Attention | None) -> str:
    """The SVG document of a training's scores and, where there is attention, its weights."""
    loss = ("loss", [(seconds / 60, value) for seconds, value in progress.loss])
    errors = [("WER", [(seconds / 60, wer) for seconds, wer, _ in progress.dev])]
    errors.append(("PER", [(seconds / 60, per) for seconds, _, per in progress.dev]))
    charts = 2 if attention is None else 3
    with figures.style():
        page = figures.figure(560, 280 * charts)
        page.set_layout_engine("constrained")
        axes = page.subplots(charts)
        figures.draw_lines(axes[0], "Training loss", "minutes", "nats / phoneme", [loss])
        title = "Errors on development words, greedy"
        figures.draw_lines(axes[1], title, "minutes", "per cent", errors)
        if attention is not None:
            _draw_attention(axes[2], attention)
        return figures.to_svg(page)


def _draw_attention(axes, attention: Attention) -> None:
    # Rectangles: an image would be embedded as pixels.
    axes.pcolor(attention.weights, cmap="Blues", vmin=0, vmax=1, edgecolors="#dddddd", lw=0.5)
    letters, phonemes = list(attention.word), [*attention.phonemes, "end"]
    axes.set_xticks([i + 0.5 for i in range(len(letters))], letters)
    axes.set_yticks([i + 0.5 for i in range(len(phonemes))], phonemes)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_title(f"Attention: {attention.word}")


def _attention(model: Model, symbols: Symbols, word: str) -> Attention:
    pronunciation = pronounce(model, symbols, [word])[0][0].pronunciation
    device = next(model.parameters()).device
    source = torch.tensor([symbols.encode_word(word)], device=device).t()
    target = torch.tensor([symbols.encode_pronunciation(pronunciation)], device=device).t()
    with torch.no_grad():
        weights = evaluated(model).attention_weights(source, target)[0]
    return Attention(word, pronunciation, weights.tolist())
