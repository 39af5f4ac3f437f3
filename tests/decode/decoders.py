"""Random decoders of torch's modules, and the step loop over them: what decoding must match."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda *sizes, **options: nn.RNNCell(*sizes, nonlinearity="relu", **options),
}


@dataclass(frozen=True)
class Sizes:
    """Batch, embedding, hidden, vocabulary, layers."""

    batch: int
    embedding: int
    hidden: int
    vocabulary: int
    layers: int


SIZES = {
    "one": Sizes(1, 1, 1, 2, 1),
    "single-row": Sizes(1, 24, 40, 67, 2),
    "two-rows-odd": Sizes(2, 33, 65, 130, 1),
    "four-rows": Sizes(4, 16, 32, 64, 3),
    "packed-odd": Sizes(13, 17, 50, 101, 2),
    "packed-many": Sizes(70, 32, 48, 300, 1),
}


class Decoder:
    """Embedding, stacked cells and projection with weights that make the tokens vary."""

    def __init__(self, cell: str, sizes: Sizes, seed: int, dtype=torch.float32, bias: bool = True):
        generator = torch.Generator().manual_seed(seed)
        self.cell, self.sizes = cell, sizes
        inputs = [sizes.embedding] + [sizes.hidden] * (sizes.layers - 1)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.cells = nn.ModuleList(CELLS[cell](i, sizes.hidden, bias=bias) for i in inputs)
        self.projection = nn.Linear(sizes.hidden, sizes.vocabulary, bias=bias)
        # A relu recurrence must not explode, a tanh or sigmoid one should not settle.
        scale = 1.0 if cell == "rnn_relu" else 2.0
        for module, gain in ((self.embedding, 1.0), (self.cells, scale), (self.projection, 8.0)):
            for weight in module.parameters():
                fan = 1 if module is self.embedding else weight.shape[-1] if weight.dim() > 1 else 4
                values = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight.data = (values * gain / fan**0.5).to(dtype)
                weight.requires_grad_(False)
        shape = (sizes.layers, sizes.batch, sizes.hidden)
        self.state = tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for _ in range(2 if cell == "lstm" else 1)
        )
        self.start = torch.randint(0, sizes.vocabulary, (sizes.batch,), generator=generator)

    def to(self, dtype: torch.dtype) -> "Decoder":
        """The same (already rounded) weights in another type."""
        other = Decoder.__new__(Decoder)
        other.cell, other.sizes, other.start = self.cell, self.sizes, self.start
        for name in ("embedding", "cells", "projection"):
            setattr(other, name, copy.deepcopy(getattr(self, name)).to(dtype))
        other.state = tuple(s.to(dtype) for s in self.state)
        return other

    def arguments(self) -> tuple:
        """The positional arguments of `greedy`."""
        layers = [
            (c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh)
            if c.bias
            else (c.weight_ih, c.weight_hh, None, None)
            for c in self.cells
        ]
        projection = (self.projection.weight, self.projection.bias)
        return self.cell, self.embedding.weight, layers, projection, self.state, self.start

    def op_arguments(self, max_length: int, eos: int = -1, pad: int = -7, scores: bool = True):
        """The arguments of the op `<cell>_greedy`."""
        _, embedding, layers, projection, state, start = self.arguments()
        weights = [list(w) for w in zip(*layers, strict=True)]
        biases = weights[2:] if weights[2][0] is not None else [[], []]
        c_0 = state[1] if len(state) == 2 else None
        sizes = (max_length, eos, pad, scores)
        return (embedding, *weights[:2], *biases, *projection, state[0], c_0, start, *sizes)


@dataclass
class Loop:
    """What the step loop gives: see DecodeResult; margin [N] is the least of top-2 logit gaps."""

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor
    state: tuple[Tensor, ...]
    margin: float


def step_loop(decoder: Decoder, max_length: int, eos: int | None = None, pad: int = -7) -> Loop:
    """The loop that a user writes over torch's modules, a row at a time where rows have ended."""
    sizes = decoder.sizes
    token = decoder.start
    states = [[s[layer].clone() for s in decoder.state] for layer in range(sizes.layers)]
    final = [s.clone() for s in decoder.state]
    tokens = torch.full((sizes.batch, max_length), pad)
    lengths = torch.zeros(sizes.batch, dtype=torch.int64)
    wide = torch.float64 if decoder.embedding.weight.dtype == torch.float64 else torch.float32
    log_probs = torch.zeros(sizes.batch, dtype=wide)
    alive, margin = torch.ones(sizes.batch, dtype=torch.bool), float("inf")
    for t in range(max_length):
        x = decoder.embedding(token)
        for layer, cell in enumerate(decoder.cells):
            state = states[layer]
            new = cell(x, tuple(state) if len(state) == 2 else state[0])
            states[layer] = list(new) if len(state) == 2 else [new]
            x = states[layer][0]
        logits = decoder.projection(x)
        token = torch.argmax(logits, -1)
        if alive.any():
            best = logits[alive].topk(2).values.double()
            margin = min(margin, (best[:, 0] - best[:, 1]).min().item())
        for row in alive.nonzero()[:, 0].tolist():
            tokens[row, t] = token[row]
            lengths[row] = t + 1
            log_probs[row] += torch.log_softmax(logits[row].to(wide), -1)[token[row]]
            for layer in range(sizes.layers):
                for kept, value in zip(final, states[layer], strict=True):
                    kept[layer, row] = value[row]
        if eos is not None:
            alive &= token != eos
    return Loop(tokens, lengths, log_probs, tuple(final), margin)


def clear_decoders(
    cell: str,
    sizes: Sizes,
    max_length: int,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    margin: float = 2e-3,
    eos: int | None = None,
) -> Iterator[tuple[Decoder, Loop]]:
    """Decoders whose every choice is clear, each with its float64 loop.

    Those seeds are taken with which, in float64, no two largest logits of any step are closer than
    `margin`: more than rounding in the type under test moves them.
    """
    for seed in range(400):
        decoder = Decoder(cell, sizes, seed, dtype, bias)
        loop = step_loop(decoder.to(torch.float64), max_length, eos)
        if loop.margin > margin:
            yield decoder, loop
    raise AssertionError(f"too few seeds give {cell} {sizes} a margin of {margin}")


def clear_decoder(*arguments, **options) -> tuple[Decoder, Loop]:
    """The first of `clear_decoders`."""
    return next(clear_decoders(*arguments, **options))


def some_clear_decoders(
    cell: str, sizes: Sizes, max_length: int, **options
) -> list[tuple[Decoder, Loop]]:
    """As many of them as make sixteen rows: the error of one row alone is a matter of luck."""
    count = max(1, 16 // sizes.batch)
    return list(islice(clear_decoders(cell, sizes, max_length, **options), count))
