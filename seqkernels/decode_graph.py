"""Greedy decoding as a CUDA graph of one step over torch's cells.

For what the persistent kernel does not take: many rows, weights that do not fit on chip, float64. A
step costs one launch instead of some ten. Graphs are kept: one reads the weights where they lie, so
it serves every call whose weights lie there, whatever their values have become.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_KEPT = 8  # graphs, each with its buffers
_ASK_EVERY = (
    16  # steps between two looks at whether all rows have ended, each a wait for the device
)


class Steps:
    """A decoder with fixed buffers, so that a step has no argument.

    Args:
        step: a cell of torch, as torch.lstm_cell.
        states: 1 for h, 2 for (h, c).
        embedding, layers, projection: as `decode.greedy` takes them.
        rows, max_length, eos, scores: sizes and options of the calls it serves; eos -1 for none.
    """

    def __init__(
        self,
        step: Callable,
        states: int,
        embedding: Tensor,
        layers: Sequence,
        projection: tuple[Tensor, Tensor | None],
        rows: int,
        max_length: int,
        eos: int,
        scores: bool,
    ):
        self.step, self.embedding, self.layers = step, embedding, layers
        self.projection, self.eos, self.scores = projection, eos, scores
        hidden = layers[0][1].shape[1]
        self.wide = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        self.state = [embedding.new_empty(len(layers), rows, hidden) for _ in range(states)]
        integers = {"dtype": torch.int64, "device": embedding.device}
        self.token = torch.empty(rows, **integers)
        self.tokens = torch.empty(rows, max_length, **integers)
        self.lengths = torch.empty(rows, **integers)
        self.now = torch.empty(rows, 1, **integers)
        self.alive = torch.empty(rows, dtype=torch.bool, device=embedding.device)
        self.log_probs = embedding.new_empty(rows, dtype=self.wide)
        self.graph: torch.cuda.CUDAGraph | None = None

    def begin(self, state: Sequence[Tensor], start: Tensor, pad: int) -> None:
        """Fill the buffers for a new call."""
        for buffer, value in zip(self.state, state, strict=True):
            buffer.copy_(value)
        self.token.copy_(start)
        self.tokens.fill_(pad)
        for buffer in (self.lengths, self.now, self.log_probs):
            buffer.zero_()
        self.alive.fill_(True)

    def advance(self) -> None:
        """One step: rows that have ended keep state and padding."""
        x = F.embedding(self.token, self.embedding)
        kept = self.alive[:, None]
        for number, weights in enumerate(self.layers):
            old = [state[number] for state in self.state]
            new = self.step(x, old if len(old) == 2 else old[0], *weights)
            new = new if len(old) == 2 else (new,)
            x = new[0]
            for buffer, value in zip(old, new, strict=True):
                buffer.copy_(torch.where(kept, value, buffer))
        logits = F.linear(x, *self.projection)
        self.token.copy_(logits.argmax(-1))
        here = self.tokens.gather(1, self.now)
        self.tokens.scatter_(1, self.now, torch.where(kept, self.token[:, None], here))
        self.lengths.add_(self.alive)
        if self.scores:
            chosen = torch.log_softmax(logits.to(self.wide), -1).gather(1, self.token[:, None])
            self.log_probs.add_(
                torch.where(self.alive, chosen[:, 0], torch.zeros_like(self.log_probs))
            )
        self.alive.logical_and_(self.token != self.eos)
        self.now.add_(1)

    def capture(self) -> None:
        """Record `advance` on buffers that hold a valid call, and let the weights go."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.advance()  # what libraries set up at their first call is no part of a graph
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.advance()
        # The graph knows addresses; to keep the tensors would keep a whole model alive.
        self.embedding, self.layers, self.projection = None, (), (None, None)

    def run(self) -> None:
        """All steps of a call that has begun."""
        advance = self.advance if self.graph is None else self.graph.replay
        for t in range(self.tokens.shape[1]):
            if self.eos >= 0 and t and t % _ASK_EVERY == 0 and not self.alive.any():
                break
            advance()


_graphs: OrderedDict[tuple, Steps] = OrderedDict()
_lock = threading.Lock()


def _where(tensor: Tensor | None) -> tuple | None:
    """What a graph has of a tensor."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def greedy(
    step: Callable,
    embedding: Tensor,
    layers: Sequence,
    projection: tuple[Tensor, Tensor | None],
    state: Sequence[Tensor],
    start: Tensor,
    max_length: int,
    eos: int,
    pad: int,
    scores: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Decode on CUDA: (tokens, lengths, log_probs, state), as `decode.DecodeResult` has them."""
    rows = start.shape[0]
    weights = (embedding, *projection, *(w for layer in layers for w in layer))
    matmul = torch.backends.cuda.matmul
    key = (
        step, rows, max_length, eos, scores, len(layers), matmul.allow_tf32,
        torch.cuda.current_stream(embedding.device), *map(_where, weights),
    )  # fmt: skip
    # Buffers of a graph outlive the call, so they must not be inference tensors.
    with _lock, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(embedding.device):
        steps = _graphs.pop(key, None)
        if steps is None:
            steps = Steps(
                step, len(state), embedding.detach(), layers, projection, rows, max_length, eos,
                scores,
            )  # fmt: skip
            steps.begin(state, start, pad)
            steps.capture()
        _graphs[key] = steps
        while len(_graphs) > _KEPT:
            _graphs.popitem(last=False)
        steps.begin(state, start, pad)
        steps.run()
        return (
            steps.tokens.clone(),
            steps.lengths.clone(),
            steps.log_probs.clone(),
            [s.clone() for s in steps.state],
        )
