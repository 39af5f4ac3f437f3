"""How gradients vanish or explode over time: `python -m seqkernels gradients`.

Cells learn to name, at the end of a sequence, the symbol at its beginning. The gradient of the loss
with respect to the hidden state of each step says how far back a cell can learn (Hochreiter 1991;
Bengio et al. 1994; Pascanu et al. 2013). `state_gradients` measures it for any recurrent layer.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import figures
from .nn import GRU, LSTM, RNN

SYMBOLS = 8  # to remember, and as many that only distract
CHANCE = 1.0 / SYMBOLS


def state_gradients(
    layer: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], state=None
) -> Tensor:
    """Norms of dL/dh_t, the whole derivative with respect to the hidden state after every step.

    The layer runs one step at a time, so that each state is a node of the graph. Gradients of its
    parameters are accumulated as by `backward`.

    Args:
        layer: a recurrent layer in one direction, called as `output, state = layer(x, state)`; of
            seqkernels, of torch.nn or your own, where the output is the last layer's h.
        x: input, [T, N, I], or [N, T, I] where the layer is batch_first.
        loss: makes a scalar of the output, which has the layer's usual layout.
        state: initial state, as the layer takes it.

    Returns:
        Norms over the batch and the hidden units, of each layer and step, [L, T].

    Raises:
        ValueError: the layer runs in both directions, or the loss is not a scalar.
    """
    if getattr(layer, "bidirectional", False):
        raise ValueError("state_gradients follows one direction; the layer is bidirectional")
    time = 1 if getattr(layer, "batch_first", False) else 0
    hidden = []
    for step in x.split(1, time):
        _, state = layer(step, state)
        h = state[0] if isinstance(state, tuple) else state
        h.retain_grad()
        hidden.append(h)
    value = loss(torch.stack([h[-1] for h in hidden], time))
    if value.numel() != 1:
        raise ValueError(f"the loss must be a scalar, got shape {list(value.shape)}")
    value.backward()
    return torch.stack([h.grad.flatten(1).norm(dim=1) for h in hidden], 1)


@dataclass
class Finding:
    """What was seen of one cell.

    Attributes:
        name: the cell and how it was initialised.
        before: norms of dL/dh_t before training, one a step.
        after: the same after training.
        gradient_norm: norm of the parameters' gradient before training.
        clipped_norm: the same after `clip_grad_norm_`.
        largest_norm: largest norm met in training, before clipping.
        accuracy: share of symbols recalled after training.
    """

    name: str
    before: list[float]
    after: list[float]
    gradient_norm: float
    clipped_norm: float
    largest_norm: float
    accuracy: float

    @property
    def reach(self) -> float:
        """Gradient at the first step over that at the last, before training."""
        return self.before[0] / max(self.before[-1], 1e-300)


class _Recall(nn.Module):
    """A recurrent layer and a classifier on its last output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.output = nn.Linear(layer.hidden_size, SYMBOLS)

    def loss(self, outputs: Tensor, answer: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.output(outputs[-1]), answer)


def recall_batch(steps: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One symbol to remember, then distracting ones: one-hot [T, N, 2*SYMBOLS] and answers [N]."""
    answer = torch.randint(SYMBOLS, (rows,), generator=generator)
    ids = torch.randint(SYMBOLS, 2 * SYMBOLS, (steps, rows), generator=generator)
    ids[0] = answer
    return nn.functional.one_hot(ids, 2 * SYMBOLS).float(), answer


def _layers(hidden: int, steps: int) -> Iterable[tuple[str, Callable[[], nn.Module]]]:
    """Every layer that is compared, by name."""

    def scaled() -> nn.Module:
        layer = RNN(2 * SYMBOLS, hidden)
        with torch.no_grad():
            layer.weight_hh_l0.mul_(4.0)
        return layer

    def remembering(kind: type[nn.Module], keep: slice, open_: slice | None) -> nn.Module:
        # Chrono initialisation (Tallec and Ollivier 2018): units forget after 1 to T steps.
        layer = kind(2 * SYMBOLS, hidden)
        bias = torch.empty(hidden).uniform_(1, steps - 1).log()
        with torch.no_grad():
            layer.bias_ih_l0[keep] = bias
            if open_ is not None:
                layer.bias_ih_l0[open_] = -bias
        return layer

    first, second = slice(0, hidden), slice(hidden, 2 * hidden)
    yield "RNN", lambda: RNN(2 * SYMBOLS, hidden)
    yield "RNN, recurrent weights x 4", scaled
    yield "GRU", lambda: GRU(2 * SYMBOLS, hidden)
    yield "LSTM", lambda: LSTM(2 * SYMBOLS, hidden)
    yield "GRU, chrono biases", lambda: remembering(GRU, second, None)
    yield "LSTM, chrono biases", lambda: remembering(LSTM, second, first)


def study(
    *,
    steps: int = 50,
    hidden: int = 64,
    rows: int = 64,
    updates: int = 300,
    clip: float = 1.0,
    seed: int = 0,
    show: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Measure and train every cell on the same task, with the same batches.

    Args:
        steps: length of a sequence, T.
        hidden: width of the state, H.
        rows: sequences of a batch, N.
        updates: training steps of each cell.
        clip: largest norm of a training step's gradient.
        seed: of weights and batches.
        show: called with each finding as it is made.
    """
    findings = []
    for name, make in _layers(hidden, steps):
        torch.manual_seed(seed)
        finding = _study_one(name, _Recall(make()), steps, rows, updates, clip, seed)
        show(finding)
        findings.append(finding)
    return findings


def _study_one(
    name: str, model: _Recall, steps: int, rows: int, updates: int, clip: float, seed: int
) -> Finding:
    generator = torch.Generator().manual_seed(seed)
    probe = recall_batch(steps, rows, generator)
    before = _norms(model, *probe)
    gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    clipped_norm = _gradient_norm(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    largest = 0.0
    for _ in range(updates):
        x, answer = recall_batch(steps, rows, generator)
        output, _ = model.layer(x)
        optimizer.zero_grad()
        model.loss(output, answer).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        largest = max(largest, norm)
        optimizer.step()
    after = _norms(model, *probe)
    x, answer = recall_batch(steps, 8 * rows, generator)
    with torch.no_grad():
        guessed = model.output(model.layer(x)[0][-1]).argmax(-1)
    accuracy = (guessed == answer).float().mean().item()
    return Finding(name, before, after, gradient_norm, clipped_norm, largest, accuracy)


def _norms(model: _Recall, x: Tensor, answer: Tensor) -> list[float]:
    model.zero_grad()
    norms = state_gradients(model.layer, x, lambda outputs: model.loss(outputs, answer))
    return norms[0].tolist()


def _gradient_norm(model: nn.Module) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))


def table(findings: Iterable[Finding]) -> str:
    """The findings as text, one row a cell."""
    head = (
        f"{'':28} {'dL/dh_1 over dL/dh_T':>23} {'norm of dL/dw':>22} "
        f"{'largest':>9} {'symbols':>9}\n"
        f"{'cell':28} {'before':>11} {'after':>11} {'before':>11} {'clipped':>10} "
        f"{'met':>9} {'recalled':>9}"
    )
    lines = [head]
    for f in findings:
        after = f.after[0] / max(f.after[-1], 1e-300)
        lines.append(
            f"{f.name:28} {f.reach:11.1e} {after:11.1e} {f.gradient_norm:11.2e} "
            f"{f.clipped_norm:10.2e} {f.largest_norm:9.1e} {100 * f.accuracy:8.1f}%"
        )
    return "\n".join(lines)


def plot(findings: Iterable[Finding]) -> str:
    """The norms over time, before and after training, as an SVG document."""
    findings = list(findings)
    with figures.style():
        page = figures.figure(720, 640)
        page.set_layout_engine("constrained")
        for axes, when in zip(page.subplots(2), ("before", "after"), strict=True):
            lines = [(f.name, list(enumerate(getattr(f, when), 1))) for f in findings]
            title = f"{when.capitalize()} training"
            figures.draw_lines(axes, title, "step t", "norm of dL/dh_t", lines, log_y=True)
        return figures.to_svg(page)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m seqkernels gradients", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--steps", type=int, default=50, help="length of a sequence, at least 3")
    add("--hidden", type=int, default=64)
    add("--updates", type=int, default=300, help="training steps of each cell")
    add("--clip", type=float, default=1.0, help="largest norm of a training step's gradient")
    add("--seed", type=int, default=0)
    add("--json", type=Path, metavar="FILE", help="write the findings")
    add("--plot", type=Path, metavar="FILE", help="plot the norms over time (SVG)")
    parsed = parser.parse_args(arguments)
    if not (3 <= parsed.steps <= 10**6 and 1 <= parsed.hidden <= 8192):
        parser.error("--steps must be 3 to 1000000, --hidden 1 to 8192")
    if parsed.updates < 0 or not parsed.clip > 0:
        parser.error("--clip must be positive, --updates not negative")
    if not 0 <= parsed.seed < 2**32:
        parser.error(f"--seed must be 0 to {2**32 - 1}, got {parsed.seed}")
    if parsed.plot is not None and parsed.plot == parsed.json:
        parser.error(f"--json and --plot name one file, {parsed.plot}")
    if parsed.plot is not None and (reason := figures.missing()):
        parser.error(reason)
    print(f"Recall of the first of {parsed.steps} symbols; chance is {100 * CHANCE:.1f} %.")
    findings = study(
        steps=parsed.steps,
        hidden=parsed.hidden,
        updates=parsed.updates,
        clip=parsed.clip,
        seed=parsed.seed,
        show=lambda finding: print(f"  {finding.name}: done", flush=True),
    )
    print(table(findings))
    try:
        if parsed.json is not None:
            text = json.dumps([asdict(finding) for finding in findings], indent=1)
            parsed.json.write_text(text + "\n")
        if parsed.plot is not None:
            parsed.plot.write_text(plot(findings))
    except OSError as error:
        print(f"gradients: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
