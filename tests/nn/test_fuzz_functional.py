"""Random calls of functions and ops, most with one tensor wrong: right numbers, or a clear error.

Layers check much before these see it, so what they check themselves is drawn here. The draws are
seeded, so that a failure can be repeated: its message names the call.
"""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from pairs import tensors_of
from test_fuzz import ERRORS, SAYS_WHAT, bad_tensor
from test_fuzz import check as check_layer

import seqkernels
from seqkernels import arguments, decode, dispatch, functional, modes
from seqkernels.cells import CELLS
from seqkernels.nn import projection
from seqkernels.ops import get
from seqkernels.ops import sequence as op_sequence

POINTWISE = [name for name, spec in CELLS.items() if spec.pointwise]


class Draw:
    """One random call: a function and its arguments by name, `free` to have any size somewhere."""

    def __init__(self, seed: int):
        self.random = r = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype = r.choice([torch.float32, torch.float32, torch.float64])
        self.rows, self.steps = r.choice([1, 2, 3, 20]), r.choice([1, 2, 5])
        self.features, self.hidden = r.choice([1, 3]), r.choice([1, 4])
        self.grad = r.random() < 0.3
        self.free, self.layout, self.known = set(), "plain", None
        self.damage = None
        makers = [_sequence, _sequence, _sequence, _projected, _cell, _greedy]
        make = r.choice([*makers, _op, _op_backward, _step, _cell_op])
        self.what = make.__name__.strip("_")
        make(self)

    def randn(self, *shape):
        return torch.randn(shape, dtype=self.dtype)

    def pick(self, cells=tuple(CELLS)):
        self.cell = self.random.choice(cells)
        self.gates = CELLS[self.cell].gates * self.hidden
        return self.cell

    def weights(self, features):
        """weight_ih, weight_hh and biases, of which any may be None."""
        named = {
            "weight_ih": self.randn(self.gates, features),
            "weight_hh": self.randn(self.gates, self.hidden),
            "bias_ih": self.randn(self.gates),
            "bias_hh": self.randn(self.gates),
        }
        for name in self.random.choice(
            [(), (), ("bias_ih", "bias_hh"), ("bias_ih",), ("bias_hh",)]
        ):
            named[name] = None
        return named

    def state(self, *first):
        c = self.randn(*first, self.hidden) if CELLS[self.cell].states > 1 else None
        return {"h": self.randn(*first, self.hidden), "c": c}

    def rows_of(self, name, width):
        """Something for every step and row in one of the layouts, and what describes it."""
        r = self.random
        self.layout = r.choice(["plain", "plain", "lengths", "reset", "packed"])
        described = dict.fromkeys(("lengths", "batch_sizes", "reset"))
        if self.layout == "packed":
            sizes = sorted((r.randint(1, self.rows) for _ in range(self.steps)), reverse=True)
            sizes[0] = self.rows
            described["batch_sizes"] = torch.tensor(sizes)
            return {name: self.randn(sum(sizes), width)}, described
        if self.layout == "lengths":
            described["lengths"] = torch.randint(0, self.steps + 1, (self.rows,))
        if self.layout == "reset":
            described["reset"] = torch.rand(self.steps, self.rows) < 0.3
        else:
            self.free.add((name, 0))
            if self.layout == "plain" and r.random() < 0.25:
                self.steps = 0
        return {name: self.randn(self.steps, self.rows, width)}, described

    def call(self, dtype=None):
        given = dict(self.arguments)
        if dtype is not None:
            given = {
                name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point()
                else value for name, value in given.items()
            }  # fmt: skip
        with torch.set_grad_enabled(self.grad):
            return self.function(**given)

    def __str__(self):
        shapes = {
            name: f"{value.dtype} {list(value.shape)}" if torch.is_tensor(value) else value
            for name, value in self.arguments.items()
        }
        return f"{self.what} of {self.cell}, {self.layout}, {shapes}, damage: {self.damage}"


def some_of(results):
    """The tensors of (output, states, c sequence or None), or of states."""
    return tensors_of([part for part in results if part is not None])


def states_of(h, c):
    return (h,) if c is None else (h, c)


def _sequence(d):
    cell, backend = d.pick(), d.random.choice([None, None, "native", "reference"])
    if d.random.random() < 0.2:  # what oneDNN takes, which is an LSTM's alone
        cell, backend, d.rows, d.grad, d.dtype = d.pick(("lstm",)), None, 20, False, torch.float32
    x, described = d.rows_of("x", d.features)
    options = {"reverse": d.random.random() < 0.4, "backend": backend}
    if cell == "lstm" and d.random.random() < 0.2:
        options["return_c_sequence"] = True

    def function(x, h, c, options=options, **rest):
        return functional.sequence(cell, x, states_of(h, c), **rest, **options)

    d.arguments = x | d.state(d.rows) | d.weights(d.features) | described
    d.function, d.what = function, f"functional.sequence {options}"
    d.known = {"options": options | {"backend": "reference"}}
    if d.grad:
        d.arguments["weight_hh"].requires_grad_()


def _projected(d):
    cell, backend = d.pick(("lstm",)), d.random.choice([None, "native", "reference"])
    x, described = d.rows_of("x", d.features)
    options = {"reverse": d.random.random() < 0.4, "return_c_sequence": False}

    def function(x, h, c, backend=backend, **rest):
        return projection.sequence(cell, x, (h, c), **rest, **options, backend=backend)

    d.arguments = x | d.state(d.rows) | d.weights(d.features) | described
    d.arguments["h"] = d.random.choice([None, d.randn(d.rows, 2)])
    d.arguments |= {"weight_hh": d.randn(d.gates, 2), "weight_hr": d.randn(2, d.hidden)}
    d.function, d.what = function, f"projection.sequence {options} on {backend}"
    d.known = {"backend": "reference"}


def _cell(d):
    cell, backend = d.pick(), d.random.choice([None, None, "native", "reference"])

    def function(x, h, c, backend=backend, **rest):
        return functional.cell(cell, x, states_of(h, c), **rest, backend=backend)

    x = {"x": d.randn(d.rows, d.features)}
    d.arguments = x | d.state(d.rows) | d.weights(d.features)
    d.function, d.what = function, f"functional.cell on {backend}"
    d.known = {"backend": "reference"}
    if d.grad:
        d.arguments["weight_hh"].requires_grad_()


def _greedy(d):
    cell, backend = d.pick(POINTWISE), d.random.choice([None, "native", "reference"])
    d.grad = False

    def function(embedding, h, c, weight_out, bias_out, start, backend=backend, **layer):
        return decode.greedy(
            cell, embedding, [tuple(layer.values())], (weight_out, bias_out), states_of(h, c),
            start, max_length=3, eos=1, backend=backend,
        )  # fmt: skip

    weights = d.weights(d.features)
    if (weights["bias_ih"] is None) != (weights["bias_hh"] is None):
        weights |= {"bias_ih": None, "bias_hh": None}
    d.arguments = {
        "embedding": d.randn(7, d.features),
        "weight_out": d.randn(7, d.hidden),
        "bias_out": d.randn(7),
        "start": torch.zeros(d.rows, dtype=torch.int64),
    }
    d.arguments |= d.state(1, d.rows) | weights
    # More words than are scored are allowed, and fewer scores with a bias of as many alone.
    d.free, d.function = {("embedding", 0)}, function


def _op(d):
    op = get(f"{d.pick()}_sequence")
    gates_x, described = d.rows_of("gates_x", d.gates)
    bias = {"bias_hh": d.randn(d.gates) if CELLS[d.cell].separate_columns else None}
    weights = {"weight_hh": d.randn(d.gates, d.hidden)} | bias
    d.arguments = gates_x | weights | d.state(d.rows) | described
    tail = (d.random.random() < 0.3, d.random.random() < 0.5)
    d.function = lambda **named: op(*named.values(), *tail)


def _op_backward(d):
    """The backward of a sequence op; what it is given of the forward is checked like the rest."""
    _op(d)
    d.free.clear()
    d.grad, given = False, d.arguments
    reverse = d.random.random() < 0.3
    output, h_n, c_n, c_sequence, saved = get(f"{d.cell}_sequence")(*given.values(), reverse, True)
    two = CELLS[d.cell].states > 1
    op = get(f"{d.cell}_sequence_backward")
    d.arguments = {
        "grad_output": torch.randn_like(output),
        "grad_h_n": torch.randn_like(h_n),
        "grad_c_n": torch.randn_like(c_n) if two else None,
        "grad_c_sequence": torch.randn_like(c_sequence) if two else None,
        "weight_hh": given["weight_hh"],
        "bias_hh": given["bias_hh"],
        "h": given["h"],
        "c": given["c"],
        "output": output,
        "c_sequence": c_sequence,
        "saved": saved,
        "lengths": given["lengths"],
        "batch_sizes": given["batch_sizes"],
        "reset": given["reset"],
    }
    d.function = lambda **named: op(*named.values(), reverse)


def _step(d):
    op = get(f"{d.pick(POINTWISE)}_step")
    d.arguments = {"x": d.randn(d.rows, d.features)} | d.weights(d.features) | d.state(d.rows)
    d.function = lambda **named: op(*named.values(), True)


def _cell_op(d):
    op = get(f"{d.pick(POINTWISE)}_cell")
    gates = {name: d.randn(d.rows, d.gates) for name in ("gates_x", "gates_h")}
    d.arguments = gates | d.state(d.rows)
    d.function = lambda **named: op(*named.values(), True)


def _damage(d):
    r = d.random
    if d.arguments.get("lengths") is not None and d.what != "op_backward" and r.random() < 0.2:
        d.arguments["lengths"][r.randrange(d.rows)] = r.choice([d.steps + 1, -1, 2**40])
        d.damage = "lengths beyond the steps"
        return
    if d.what.startswith("functional.sequence") and d.layout == "packed" and r.random() < 0.1:
        d.arguments["lengths"] = torch.ones(d.rows, dtype=torch.int64)
        d.damage = "lengths beside batch_sizes"
        return
    tensors = [n for n, t in d.arguments.items() if torch.is_tensor(t) and t.numel() and t.dim()]
    described = [n for n in tensors if n in ("lengths", "batch_sizes", "reset")]
    name = r.choice(described if described and r.random() < 0.3 else tensors)
    tensor = d.arguments[name].detach()
    dims = [i for i in range(tensor.dim()) if (name, i) not in d.free]
    what, d.arguments[name] = bad_tensor(r, tensor, dims)
    d.damage = f"{name} {what}"


def check(seed: int) -> None:
    draw = Draw(seed)
    if draw.random.random() < 0.7:
        _damage(draw)
        with pytest.raises(ERRORS) as caught:
            draw.call()
            pytest.fail(f"seed {seed}, no error: {draw}")
        message = str(caught.value)
        assert re.search(SAYS_WHAT, message), f"seed {seed}: {message!r} says too little of {draw}"
        return
    try:
        found = draw.call()
    except ERRORS as error:
        raise AssertionError(f"seed {seed}: {draw}") from error
    if draw.known is not None:
        draw.arguments |= draw.known
        expected = draw.call(torch.float64)
        pairs = zip(some_of(found), some_of(expected), strict=True)
        for index, (one, truth) in enumerate(pairs):
            assert torch.allclose(one.double(), truth, atol=1e-5), f"{draw}, result {index}"


def check_on_reference(seed: int) -> None:
    """As `check`, but for what kernels might read."""
    if "reference" in Draw(seed).what:
        check(seed)


def test_some_calls():
    for seed in range(100):
        check(seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", range(20))
def test_many_calls(block):
    for seed in range(1000 + 100 * block, 1000 + 100 * (block + 1)):
        check(seed)


def change(r, blocks: list[tuple[ExitStack, str | None]]) -> None:
    """Enter or leave a block, in the thread that calls, and see what is chosen there."""
    if len(blocks) > 1 and r.random() < 0.5:
        blocks.pop()[0].close()
    else:
        name = r.choice([None, "native", "reference"])
        stack = ExitStack()
        stack.enter_context(seqkernels.use_backend(name))
        blocks.append((stack, name))
    assert dispatch.selected() == blocks[-1][1]


def check_threads(seed: int) -> None:
    """Blocks of three threads overlap in any order: each thread has its own choice throughout."""
    r = random.Random(seed)
    own = [(ThreadPoolExecutor(1), [(ExitStack(), None)]) for _ in range(3)]
    for _ in range(100):
        thread, blocks = r.choice(own)
        thread.submit(change, r, blocks).result()
    for thread, blocks in own:
        assert thread.submit(dispatch.selected).result() == blocks[-1][1]
        thread.shutdown()
    assert dispatch.selected() is None


@pytest.mark.parametrize("seed", range(20))
def test_threads_choose_backends_for_themselves(seed):
    check_threads(seed)


def nothing(*_, **__):
    """In the place of a check."""


# Faults once found that can be planted without a read beyond the end of a tensor.
FAULTS = {
    "lengths of the reference": (arguments, "check_lengths", nothing, check),
    "batch_sizes of the reference": (op_sequence, "check_batch_sizes", nothing, check_layer),
    "one tensor on meta": (op_sequence, "same_device", nothing, check),
    "a bias of another size": (arguments, "same", nothing, check_on_reference),
    "projected states under autocast": (
        projection,
        "modes",
        SimpleNamespace(autocast=lambda device, tensors: tensors, wide_results=modes.wide_results),
        check_layer,
    ),
    "one choice for all threads": (
        dispatch,
        "_thread",
        SimpleNamespace(selected=None, record=None),
        check_threads,
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    module, name, planted, one_check = FAULTS[fault]
    monkeypatch.setattr(module, name, planted)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        for seed in range(1000, 3000):
            one_check(seed)
