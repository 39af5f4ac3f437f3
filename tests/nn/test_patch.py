"""patch(): torch.nn's own classes on these kernels, and torch's functions back afterwards."""

import copy
import pickle
import threading

import pytest
import torch
from pairs import DTYPES, Trio, assert_same_over, state
from spied import Spy
from tolerance import assert_parity
from torch import nn
from torch.nn.modules import rnn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import seqkernels

KINDS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")


@pytest.fixture
def calls(monkeypatch):
    """The names of torch's functions that torch.nn's layers called."""
    spy = Spy()
    monkeypatch.setattr(rnn, "_VF", spy)
    return spy.calls


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test leaves torch.nn as it found it."""
    before = rnn._VF
    yield
    assert rnn._VF is before is torch._VF


def _patched(module, calls):
    """A copy of a module of torch.nn that runs under patch(), and fails if torch computes."""
    module = copy.deepcopy(module)
    blocks = []

    def enter(*_):
        blocks.append((seqkernels.patch().__enter__(), len(calls)))

    def leave(*_):
        block, before = blocks.pop()
        block.__exit__(None, None, None)
        assert calls[before:] == []

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
    return module


OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False, "num_layers": 2},
    "batch first": {"batch_first": True, "bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True, "num_layers": 2},
    "projected, no bias": {"proj_size": 3, "bias": False},
    "relu": {"nonlinearity": "relu"},
}
LAYERS = [
    (kind, options)
    for kind in KINDS
    for options in OPTIONS.values()
    if kind == "LSTM" or "proj_size" not in options
    if kind == "RNN" or "nonlinearity" not in options
]
_names = [f"{kind} {options}" for kind, options in LAYERS]


def _input(layout, features, batch_first):
    """A padded, unbatched or packed input of up to 5 steps and 3 rows."""
    if layout == "unbatched":
        return torch.randn(5, features, dtype=torch.float64)
    if layout == "padded":
        return torch.randn(*((3, 5) if batch_first else (5, 3)), features, dtype=torch.float64)
    rows = [torch.randn(n, features, dtype=torch.float64) for n in (2, 5, 3)]
    if layout == "sorted":
        return pack_sequence(sorted(rows, key=len, reverse=True))
    return pack_sequence(rows, enforce_sorted=False)


def _assert_same(calls, make, arguments, dtype):
    """Parity of a module that `make` builds; over many where torch's own error is a matter of luck.

    Args:
        calls: the fixture.
        make: builds a module of torch.nn.
        arguments: builds those of a call.
        dtype: of the module.
    """
    cases = []
    for _ in range(1 if dtype == torch.float64 else 8):
        theirs = make().to(dtype)
        modules = Trio(_patched(theirs, calls), theirs, copy.deepcopy(theirs).double())
        cases.append((modules, arguments()))
    assert_same_over(cases)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.pairs("layer", "layout")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", ["padded", "unbatched", "sorted", "unsorted"])
@pytest.mark.parametrize("layer", LAYERS, ids=_names)
def test_layers(calls, layer, layout, with_state, dtype):
    kind, options = layer

    def arguments():
        hx = state(
            kind,
            () if layout == "unbatched" else (3,),
            6,
            layers=options.get("num_layers", 1),
            directions=2 if options.get("bidirectional") else 1,
            proj_size=options.get("proj_size", 0),
        )
        x = _input(layout, 4, options.get("batch_first"))
        return (x, hx) if with_state else (x,)

    _assert_same(calls, lambda: getattr(nn, kind)(4, 6, **options), arguments, dtype)


@pytest.mark.pairs("kind", "dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(calls, kind, bias, with_state, batched, dtype):
    batch = (5,) if batched else ()

    def arguments():
        h = torch.randn(*batch, 6, dtype=torch.float64)
        hx = (h, torch.randn_like(h)) if kind == "LSTMCell" else h
        x = torch.randn(*batch, 4, dtype=torch.float64)
        return (x, hx) if with_state else (x,)

    _assert_same(calls, lambda: getattr(nn, kind)(4, 6, bias=bias), arguments, dtype)


def test_dropout_between_layers(calls):
    """Certain dropout leaves the second layer nothing but its state; without training, all."""
    layer = nn.GRU(4, 6, 2, dropout=1.0)
    patched = _patched(layer, calls)
    x, other = torch.randn(2, 5, 3, 4)
    assert torch.equal(patched(x)[0], patched(other)[0])
    patched.eval()
    layer.eval()
    expected = layer(x)[0]
    assert_parity(patched(x)[0], expected, expected.double(), "without training")


class Packing(nn.LSTM):
    """A subclass with a forward of its own, as forecasting libraries have them."""

    def forward(self, x, lengths):
        rows = [row[:n] for row, n in zip(x, lengths, strict=True)]
        packed, final = super().forward(pack_sequence(rows, enforce_sorted=False))
        return pad_packed_sequence(packed, batch_first=True)[0] + 1, final


class Residual(nn.GRUCell):
    """A subclass of a cell."""

    def forward(self, input, hx):
        return hx + super().forward(input, hx)


def test_subclasses(calls):
    packing, residual = Packing(4, 6), Residual(4, 6)
    x, h = torch.randn(3, 5, 4), torch.randn(3, 6)
    expected = packing(x, (2, 5, 3))[0], residual(x[:, 0], h)
    kinds, texts = (Packing, Residual), (repr(packing), repr(residual))
    before = len(calls)
    with seqkernels.patch():
        found = packing(x, (2, 5, 3))[0], residual(x[:, 0], h)
        assert (type(packing), type(residual)) == kinds and isinstance(packing, nn.LSTM)
        assert (repr(packing), repr(residual)) == texts
        stored = pickle.dumps(packing)
    assert calls[before:] == []
    assert b"seqkernels" not in stored
    for ours, theirs in zip(found, expected, strict=True):
        assert_parity(ours, theirs, theirs.double(), "result")
    assert torch.equal(pickle.loads(stored)(x, (2, 5, 3))[0], expected[0])


def test_a_layer_made_inside_is_torchs():
    with seqkernels.patch():
        layer = nn.LSTM(4, 6)
    assert type(layer) is nn.LSTM
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))


def test_blocks_count_and_restore(calls):
    layer, x, before = nn.GRU(4, 6), torch.randn(5, 3, 4), rnn._VF
    with seqkernels.patch():
        ours = rnn._VF
        with seqkernels.patch():
            assert rnn._VF is ours
        layer(x)
        assert rnn._VF is ours is not before and calls == []
    assert rnn._VF is before
    layer(x)
    assert calls == ["gru"]
    with pytest.raises(ValueError, match="in the block"), seqkernels.patch():
        raise ValueError("in the block")
    assert rnn._VF is before


def test_calls_count_and_restore():
    seqkernels.patch()
    seqkernels.patch()
    assert seqkernels.unpatch() is True and rnn._VF is not torch._VF
    assert seqkernels.unpatch() is False and rnn._VF is torch._VF
    with pytest.raises(RuntimeError, match="no call of seqkernels.patch"):
        seqkernels.unpatch()


def test_unpatch_leaves_a_block_alone():
    with seqkernels.patch():
        with pytest.raises(RuntimeError, match="no call of seqkernels.patch"):
            seqkernels.unpatch()
        seqkernels.patch()
        assert seqkernels.unpatch() is True
        seqkernels.patch()
    assert rnn._VF is not torch._VF  # the call is still in force
    seqkernels.unpatch()


def test_one_object_for_several_blocks():
    block = seqkernels.patch()
    with block, block:
        assert rnn._VF is not torch._VF
    assert rnn._VF is torch._VF
    with block:
        assert rnn._VF is not torch._VF
    assert rnn._VF is torch._VF


def test_everything_else_is_torchs():
    with seqkernels.patch():
        assert rnn._VF.dropout is torch._VF.dropout
        with pytest.raises(AttributeError, match="no_such_function"):
            rnn._VF.no_such_function  # noqa: B018


def test_another_library_on_top_stays():
    layer, x = nn.LSTM(4, 6), torch.randn(5, 3, 4)
    seqkernels.patch()
    ours, other = rnn._VF, Spy()
    rnn._VF = other
    with pytest.warns(UserWarning, match="was replaced after seqkernels.patch"):
        seqkernels.unpatch()
    assert rnn._VF is other
    with seqkernels.patch():  # on top of both; the older one passes calls on
        layer(x)
        assert other.calls == []
    layer(x)
    assert other.calls == ["lstm"]
    rnn._VF = ours  # what the other library found, put back: it is switched off, so torch's
    expected = torch._VF.lstm(
        x, (torch.zeros(1, 3, 6),) * 2, layer._flat_weights, True, 1, 0.0, True, False, False
    )
    assert torch.equal(layer(x)[0], expected[0])
    with seqkernels.patch():
        assert rnn._VF is ours
    assert rnn._VF is torch._VF


def test_threads():
    """Blocks come and go in some threads while others compute: every result is right."""
    layer, x = nn.GRU(4, 6, dtype=torch.float64), torch.randn(5, 3, 4, dtype=torch.float64)
    failures, end = [], threading.Event()

    def results():
        output = layer(x)[0]
        return output, *torch.autograd.grad(output.sin().sum(), list(layer.parameters()))

    expected = results()

    def compute():
        while not end.is_set():
            for found, right in zip(results(), expected, strict=True):
                if not torch.allclose(found, right, rtol=0, atol=1e-12):
                    failures.append(found)

    def patch():
        for _ in range(300):
            with seqkernels.patch():
                layer(x)
            seqkernels.patch()
            seqkernels.unpatch()

    workers = [threading.Thread(target=compute) for _ in range(2)]
    patchers = [threading.Thread(target=patch) for _ in range(4)]
    for thread in (*workers, *patchers):
        thread.start()
    for thread in patchers:
        thread.join()
    end.set()
    for thread in workers:
        thread.join()
    assert not failures and rnn._VF is torch._VF


def test_it_holds_in_every_thread(calls):
    layer, x = nn.GRU(4, 6), torch.randn(5, 3, 4)
    with seqkernels.patch():
        thread = threading.Thread(target=layer, args=(x,))
        thread.start()
        thread.join()
    assert calls == []
