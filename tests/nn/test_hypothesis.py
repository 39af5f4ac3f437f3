"""Random constructors and inputs: the same numbers as torch.nn, and the same refusals."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import run, tensors_of, trio
from tolerance import assert_parity
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import seqkernels

# torch warns that its own projected LSTM leaves oneDNN.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

_settings = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
KINDS = st.sampled_from(["LSTM", "GRU", "RNN"])


@st.composite
def constructors(draw):
    """(class name, positional arguments, keyword arguments) that torch accepts."""
    kind = draw(KINDS)
    input_size, hidden_size = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind == "LSTM" and hidden_size > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden_size - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return kind, (input_size, hidden_size), options


@st.composite
def calls(draw):
    """A constructor with an input that fits it: padded, unbatched or packed, with or without hx."""
    kind, (input_size, hidden_size), options = draw(constructors())
    layout = draw(st.sampled_from(["padded", "unbatched", "packed"]))
    torch.manual_seed(draw(st.integers(0, 9999)))
    batch = draw(st.integers(1, 6))
    if layout == "packed":
        lengths = draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch))
        rows = [torch.randn(n, input_size, dtype=torch.float64) for n in lengths]
        x = pack_sequence(rows, enforce_sorted=False)
    else:
        shape = [draw(st.integers(1, 7)), batch]
        if options["batch_first"]:
            shape.reverse()
        if layout == "unbatched":
            shape = shape[:1]
        x = torch.randn(*shape, input_size, dtype=torch.float64)
    hx = None
    if draw(st.booleans()):
        rows = options["num_layers"] * (2 if options["bidirectional"] else 1)
        batched = () if layout == "unbatched" else (batch,)
        widths = [options.get("proj_size", hidden_size), hidden_size]
        state = [torch.randn(rows, *batched, w, dtype=torch.float64) for w in widths]
        hx = tuple(state) if kind == "LSTM" else state[0]
    return kind, (input_size, hidden_size), options, x, hx


@_settings
@given(calls())
def test_parity(call):
    kind, sizes, options, x, hx = call
    ours, theirs, _ = trio(kind, *sizes, **options)
    found, expected = (run(m, torch.float64, (x, hx)) for m in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_parity(value, None, expected[name], name)


def _outcome(build):
    """The exception's class, or the shapes of the results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            results = build()
        except Exception as error:
            return type(error)
    return [tuple(t.shape) for t in tensors_of(results)]


_VALUES = st.one_of(
    st.integers(-1, 4), st.booleans(), st.none(), st.sampled_from([0.5, 2.0, "tanh", "x"])
)


@_settings
@given(
    KINDS,
    st.integers(0, 4),
    st.integers(0, 4),
    st.dictionaries(
        st.sampled_from(["num_layers", "bias", "batch_first", "dropout", "bidirectional"]),
        _VALUES,
        max_size=2,
    ),
)
def test_constructor_refusals(kind, input_size, hidden_size, options):
    def build(package):
        def call():
            module = getattr(package, kind)(input_size, hidden_size, **options)
            return list(module.parameters())

        return call

    assert _outcome(build(seqkernels)) == _outcome(build(nn))


@_settings
@given(
    KINDS,
    st.booleans(),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_call_refusals(kind, batch_first, x_shape, h_shape, dtype):
    """Every shape of input and state: the results' shapes or the exception are torch's."""

    def call(package):
        module = getattr(package, kind)(3, 4, 2, batch_first=batch_first)
        h = None if h_shape is None else torch.zeros(h_shape)
        return lambda: module(
            torch.zeros(x_shape, dtype=dtype),
            (h, h) if h is not None and kind == "LSTM" else h,
        )

    assert _outcome(call(seqkernels)) == _outcome(call(nn))


@_settings
@given(
    st.sampled_from(["LSTMCell", "GRUCell", "RNNCell"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.none() | st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_cell_refusals(kind, x_shape, h_shape):
    def call(package):
        module = getattr(package, kind)(3, 4)
        h = None if h_shape is None else torch.zeros(h_shape)
        return lambda: module(
            torch.zeros(x_shape), (h, h) if h is not None and kind == "LSTMCell" else h
        )

    assert _outcome(call(seqkernels)) == _outcome(call(nn))


@_settings
@given(calls(), st.data())
def test_lengths_are_packing(call, data):
    """`lengths=` on padded rows gives what torch gives for the rows packed."""
    kind, sizes, options, x, _ = call
    ours, theirs, _ = trio(kind, *sizes, **options)
    batch = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=batch, max_size=batch))
    rows = [torch.randn(n, sizes[0], dtype=torch.float64) for n in lengths]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=options["batch_first"], padding_value=3.0)
    output, state = ours(padded, lengths=torch.tensor(lengths))
    packed, expected_state = theirs(pack_sequence(rows, enforce_sorted=False))
    expected, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=options["batch_first"])
    assert_parity(output, None, expected, "output")
    for found, wanted in zip(tensors_of(state), tensors_of(expected_state), strict=True):
        assert_parity(found, None, wanted, "state")
