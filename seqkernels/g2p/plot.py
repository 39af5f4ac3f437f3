"""The plot of a training: loss, error rates and where attention looks."""

import torch

from ..svg import HeatMap, LineChart, Series, page
from .data import Symbols
from .model import Model, pronounce
from .train import Progress


def training_plot(progress: Progress, model: Model, symbols: Symbols, word: str) -> str:
    """An SVG document.

    Args:
        progress: of the training.
        model: the trained model.
        symbols: its letters and phonemes.
        word: whose attention is shown, where the model attends.
    """
    loss = Series("loss", [(seconds / 60, value) for seconds, value in progress.loss])
    charts: list[LineChart | HeatMap] = [
        LineChart("Training loss", "minutes", "nats / phoneme", [loss]),
        LineChart(
            "Errors on development words, greedy",
            "minutes",
            "per cent",
            [
                Series("WER", [(s / 60, wer) for s, wer, _ in progress.dev]),
                Series("PER", [(s / 60, per) for s, _, per in progress.dev]),
            ],
        ),
    ]
    if model.decoder.attention is not None:
        charts.append(_attention_map(model, symbols, word))
    return page(charts)


def _attention_map(model: Model, symbols: Symbols, word: str) -> HeatMap:
    pronunciation = pronounce(model, symbols, [word])[0][0].pronunciation
    device = next(model.parameters()).device
    source = torch.tensor([symbols.encode_word(word)], device=device).t()
    target = torch.tensor([symbols.encode_pronunciation(pronunciation)], device=device).t()
    training = model.training
    model.eval()
    with torch.no_grad():
        weights = model.attention_weights(source, target)[0]
    model.train(training)
    return HeatMap(f"Attention: {word}", (*pronunciation, "end"), tuple(word), weights.tolist())
