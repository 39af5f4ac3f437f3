"""Random calls of layers and cells, some with one thing wrong: right numbers, or a clear error.

A wrong call must raise before a kernel starts, whichever backend would have run it. The draws are
seeded, so that a failure can be repeated: its message names the call.
"""

import copy
import random
import re

import pytest
import torch
from pairs import tensors_of
from tolerance import assert_parity
from torch.nn.utils.rnn import PackedSequence

import seqkernels

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
ERRORS = (RuntimeError, ValueError, TypeError, IndexError)
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32, torch.float64)
SAYS_WHAT = r"\d|\[\]|bool|dtype|device|meta|float|int64|long|Float|Long|Tensor|given together"


class Draw:
    """One random call: a module, its arguments and the modes around it."""

    def __init__(self, seed: int):
        self.random = r = random.Random(seed)
        torch.manual_seed(seed)
        self.kind = r.choice((*KINDS, "LSTM", "LSTM"))  # it has the most paths
        self.cell = self.kind.endswith("Cell")
        self.input, self.hidden = r.choice([1, 3, 8]), r.choice([1, 4, 16])
        options = {"bias": r.random() < 0.7}
        if not self.cell:
            options["num_layers"] = r.choice([1, 1, 2])
            options["bidirectional"] = r.random() < 0.3
            if self.kind == "LSTM" and self.hidden > 1 and r.random() < 0.7:
                options["proj_size"] = self.hidden // 2
        if self.kind.startswith("GRU") and r.random() < 0.3:
            options["reset"] = "before"
        if self.kind == "RNN" and r.random() < 0.3:
            options["nonlinearity"] = "relu"
        self.options = options
        self.dtype = r.choice([torch.float32] * 3 + [torch.float64] + list(HALVES))
        self.autocast = r.choice([*HALVES, None, None, None])
        make = getattr(seqkernels, self.kind)
        self.module = make(self.input, self.hidden, dtype=self.dtype, **options)
        self.exact = copy.deepcopy(self.module).double()
        # From 17 rows on inference of an LSTM runs on oneDNN.
        self.rows, self.steps = r.choice([1, 2, 3, 17, 20]), r.choice([1, 2, 5])
        self.grad = r.random() < 0.5
        self.backend = r.choice([None, None, "native", "reference"])
        self.x = self._randn(self.rows, self.input)
        if not self.cell:
            self.x = self._randn(self.steps, self.rows, self.input)
        self.state = self._state() if r.random() < 0.7 else None
        self.keywords = {}
        self.batch_sizes = None
        if not self.cell:
            self._layout()
        self.damage = None

    def _randn(self, *shape):
        return torch.randn(shape, dtype=self.dtype)

    def _state(self):
        h = self.options.get("proj_size", self.hidden)
        widths = (h, self.hidden) if self.kind.startswith("LSTM") else (h,)
        directions = 2 if self.options.get("bidirectional") else 1
        first = () if self.cell else (self.options["num_layers"] * directions,)
        return [self._randn(*first, self.rows, width) for width in widths]

    def _layout(self):
        r = self.random
        kind = r.choice(["plain", "lengths", "reset", "packed"])
        if kind == "lengths":
            self.keywords["lengths"] = torch.randint(0, self.steps + 1, (self.rows,))
        if kind == "reset":
            self.keywords["reset"] = torch.rand(self.steps, self.rows) < 0.3
        if kind == "packed":
            sizes = sorted((r.randint(1, self.rows) for _ in range(self.steps)), reverse=True)
            sizes[0] = self.rows
            self.batch_sizes = torch.tensor(sizes)
            self.x = self._randn(sum(sizes), self.input)

    def arguments(self, dtype=None):
        """What the module is called with."""
        x, state = self.x, self.state
        if dtype is not None:
            x, state = x.to(dtype), None if state is None else [s.to(dtype) for s in state]
        if self.batch_sizes is not None:
            x = PackedSequence(x, self.batch_sizes)
        if state is not None:
            state = tuple(state) if self.kind.startswith("LSTM") else state[0]
        return x, state

    def cast(self):
        return torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)

    def call(self):
        return self.on(self.backend, self.grad)

    def on(self, backend, grad=True):
        modes = torch.set_grad_enabled(grad), seqkernels.use_backend(backend)
        with modes[0], modes[1], self.cast():
            return self.module(*self.arguments(), **self.keywords)

    def __str__(self):
        shapes = [list(s.shape) for s in self.state or ()]
        return (
            f"{self.kind}({self.input}, {self.hidden}, {self.options}) {self.dtype}, autocast "
            f"{self.autocast}, on {self.backend}, x {list(self.x.shape)}, state {shapes}, "
            f"{list(self.keywords)}, packed {self.batch_sizes}, grad {self.grad}, "
            f"damage: {self.damage}"
        )


def another_dtype(r, dtype, autocast):
    """One of floats that does not fit where `dtype` does, nor is made fit by autocast."""
    floats = [torch.float64] if autocast else FLOATS
    return r.choice([other for other in floats if other != dtype] or HALVES)


def bad_tensor(r, t, dims=None, autocast=None):
    """(what is wrong, a tensor that does not fit where t does).

    Args:
        r: a random.Random.
        t: any tensor with elements.
        dims: dimensions whose size others must share; by default all.
        autocast: the dtype of autocast, where it is on.
    """
    choices = {
        "a dimension more": t.unsqueeze(0),
        "two dimensions more": t[None, None],
        "a dimension less": t.select(r.randrange(t.dim()), 0),
        "on meta": t.to("meta"),
        "another dtype": t.to(another_dtype(r, t.dtype, autocast)),
        "integers": t.to(torch.int64 if t.is_floating_point() else torch.int16),
    }
    if dims is None or dims:
        dim = r.choice(dims or range(t.dim()))
        shorter = t.narrow(dim, 0, t.shape[dim] - 1)
        choices[f"longer in dimension {dim}"] = torch.cat((t, t.narrow(dim, 0, 1)), dim)
        if shorter.numel():
            choices[f"shorter in dimension {dim}"] = shorter
        if t.shape[dim] > 1:
            choices[f"one to broadcast in dimension {dim}"] = t.narrow(dim, 0, 1)
    name = r.choice(sorted(choices))
    return name, choices[name]


def _damage_weight(d):
    name, weight = d.random.choice(list(d.module.named_parameters()))
    what, bad = bad_tensor(d.random, weight.detach(), autocast=d.autocast)
    del d.module._parameters[name]
    setattr(d.module, name, bad)
    d.damage = f"{name} {what}"


def _damage_state(d):
    d.state = d.state or d._state()
    index = d.random.randrange(len(d.state))
    what, d.state[index] = bad_tensor(d.random, d.state[index], autocast=d.autocast)
    d.damage = f"state {index} {what}"


def _damage_input(d):
    last = d.x.dim() - 1
    wrong = {
        "features": torch.cat((d.x, d.x), last),
        "a dimension more": d.x.unsqueeze(0).unsqueeze(0),
        "integers": d.x.long(),
        "on meta": d.x.to("meta"),
        "another dtype": d.x.to(another_dtype(d.random, d.x.dtype, d.autocast)),
    }
    name = d.random.choice(sorted(wrong))
    d.x, d.damage = wrong[name], f"input {name}"


def _damage_layout(d):
    r = d.random
    if d.batch_sizes is not None:
        rising, over = d.batch_sizes.clone(), d.batch_sizes.clone()
        over[0] += 1
        wrong = {"too many rows": over, "floats": d.batch_sizes.float()}
        wrong["a zero"] = torch.cat((d.batch_sizes, torch.tensor([0])))
        if d.steps > 1:
            rising[-1] = d.rows + 1
            wrong["rising"] = rising
        name = r.choice(sorted(wrong))
        d.batch_sizes, d.damage = wrong[name], f"batch sizes {name}"
        return
    if "lengths" in d.keywords:
        lengths = d.keywords["lengths"]
        wrong = {"floats": lengths.float(), "more": torch.cat((lengths, lengths)), "a list": [1]}
        wrong["on meta"] = lengths.to("meta")
        wrong["beyond the steps"] = lengths + d.steps + 1
        wrong["negative"] = -1 - lengths
        name = r.choice(sorted(wrong))
        d.keywords["lengths"], d.damage = wrong[name], f"lengths {name}"
        return
    reset = torch.zeros(d.steps, d.rows, dtype=torch.bool)
    wrong = {
        "integers": reset.long(),
        "more": torch.cat((reset, reset)),
        "on meta": reset.to("meta"),
    }
    name = r.choice(sorted(wrong))
    d.keywords["reset"], d.damage = wrong[name], f"reset {name}"


def check(seed: int) -> None:
    draw = Draw(seed)
    damages = [_damage_weight, _damage_state, _damage_input]
    if not draw.cell:
        damages.append(_damage_layout)
    if draw.random.random() < (0.6 if draw.autocast is None else 0.3):
        draw.random.choice(damages)(draw)
    if draw.damage is None:
        _check_numbers(draw)
        return
    with pytest.raises(ERRORS) as caught:
        draw.call()
        pytest.fail(f"seed {seed}, no error: {draw}")
    message = str(caught.value)
    assert re.search(SAYS_WHAT, message), f"seed {seed}: {message!r} says too little of {draw}"
    assert ".cpp:" not in message and ".h:" not in message.splitlines()[0], message


def _check_numbers(draw: Draw) -> None:
    try:
        found = [t.detach() for t in tensors_of(draw.call())]
    except ERRORS as error:
        raise AssertionError(f"{draw}") from error
    theirs = [t.detach() for t in tensors_of(draw.on("reference"))]
    with seqkernels.use_backend("reference"):
        arguments = draw.arguments(torch.float64)
        exact = [t.detach() for t in tensors_of(draw.exact(*arguments, **draw.keywords))]
    for index, (one, other, truth) in enumerate(zip(found, theirs, exact, strict=True)):
        # Of one or two numbers the rule would compare luck.
        if truth.numel() > 16:
            assert_parity(one, other, truth, f"{draw}, result {index}")
        else:
            assert one.dtype == other.dtype, f"{draw}, result {index}"
            half = draw.autocast is not None or draw.dtype in HALVES
            close = torch.allclose(one.double(), truth, atol=0.05 if half else 1e-5)
            assert close, f"{draw}, result {index}"


@pytest.mark.parametrize("block", range(4))
def test_some_calls(block):
    for seed in range(60 * block, 60 * (block + 1)):
        check(seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", range(20))
def test_many_calls(block):
    for seed in range(1000 + 100 * block, 1000 + 100 * (block + 1)):
        check(seed)


def test_the_fuzzer_finds_an_unchecked_weight(monkeypatch):
    """Without the checks some of its calls go through: it can fail."""
    from seqkernels import arguments

    monkeypatch.setattr(arguments, "check_part", lambda *a: None)
    monkeypatch.setattr(arguments, "check_layout", lambda *a: None)
    failures = 0
    for seed in range(400):
        draw = Draw(seed)
        if draw.cell or draw.backend != "reference":
            continue
        _damage_weight(draw)
        if "broadcast" not in draw.damage and "on meta" not in draw.damage:
            continue
        try:
            draw.call()
            failures += 1
        except ERRORS:
            pass
    assert failures > 0
