"""Errors of greedy decoding, its op's registration, and the choice of a backend."""

import re

import pytest
import torch
from decoders import CELLS, SIZES, Decoder, Sizes
from torch._subclasses.fake_tensor import FakeTensorMode

from seqkernels import use_backend
from seqkernels.decode import greedy
from seqkernels.ops import get


def arguments(kind="lstm", **changes):
    """Keyword arguments of `greedy` with some of them replaced."""
    decoder = Decoder(kind, Sizes(2, 3, 4, 5, 2), 0)
    names = ("cell", "embedding", "layers", "projection", "state", "start")
    return {**dict(zip(names, decoder.arguments(), strict=True)), "max_length": 3, **changes}


def swapped(layers, number, **weights):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layer = tuple(weights.get(n, w) for n, w in zip(names, layers[number], strict=True))
    return [*layers[:number], layer, *layers[number + 1 :]]


LAYERS = arguments()["layers"]
STATE = arguments()["state"]
PROJECTION = arguments()["projection"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "gru_reset_before"}, "knows the cells lstm, gru, rnn_tanh, rnn_relu, not"),
        ({"layers": []}, "at least one layer"),
        ({"state": STATE[:1]}, "lstm has 2 state tensor(s), got 1"),
        ({"state": (STATE[0], STATE[1][:1])}, "state c must be [2, 2, 4], got [1, 2, 4]"),
        ({"state": (STATE[0].double(), STATE[1])}, "must share torch.float32, got torch.float64"),
        ({"max_length": -1}, "max_length must not be negative, got -1"),
        (
            {"layers": swapped(LAYERS, 1, weight_ih=torch.zeros(16, 3))},
            "weight_ih of layer 1 must be [16, 4], got [16, 3]",
        ),
        (
            {"layers": swapped(LAYERS, 0, bias_hh=torch.zeros(15))},
            "bias_hh of layer 0 must be [16], got [15]",
        ),
        ({"layers": swapped(LAYERS, 0, bias_hh=None)}, "layer 0 must have both biases or none"),
        (
            {"layers": swapped(LAYERS, 1, bias_ih=None, bias_hh=None)},
            "all layers must have biases, or none",
        ),
        (
            {"projection": (torch.zeros(6, 4), None)},
            "scores 6 tokens, but the embedding holds 5",
        ),
        (
            {"projection": (PROJECTION[0], torch.zeros(4))},
            "the projection's bias must be [5], got [4]",
        ),
        ({"start": torch.tensor([0, 5])}, "start token 5 is outside the embedding of 5"),
        ({"start": torch.tensor([-1, 0])}, "start token -1 is outside the embedding of 5"),
        ({"start": torch.tensor([0.0, 1.0])}, "start must be int64, got torch.float32"),
        ({"start": torch.tensor([0, 1, 2])}, "state h must be [2, 3, 4], got [2, 2, 4]"),
        ({"eos": 5}, "eos 5 is outside the vocabulary of 5"),
        ({"eos": -1}, "eos -1 is outside the vocabulary of 5"),
        ({"backend": "fastest"}, "unknown backend 'fastest'; decoding has native"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        greedy(**arguments(**changes))


def test_gradients_are_refused():
    changed = arguments()
    changed["embedding"] = changed["embedding"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient: call it under torch.no_grad"):
        greedy(**changed)
    with torch.no_grad():
        greedy(**changed)
    with torch.inference_mode():
        greedy(**changed)


def test_use_backend_names_it_too(monkeypatch):
    from seqkernels import decode

    def fail(call, spec):
        raise AssertionError("the fused op was called")

    monkeypatch.setattr(decode, "_run_op", fail)
    with use_backend("reference"):
        greedy(**arguments())


def op_arguments(cell, dtype=torch.float32, bias=True, **changes):
    cell, embedding, layers, projection, state, start = Decoder(
        cell, SIZES["four-rows"], 0, dtype, bias
    ).arguments()
    weights = [list(w) for w in zip(*layers, strict=True)]
    values = {
        "embedding": embedding,
        "weight_ih": weights[0],
        "weight_hh": weights[1],
        "bias_ih": weights[2] if bias else [],
        "bias_hh": weights[3] if bias else [],
        "weight_out": projection[0],
        "bias_out": projection[1],
        "h_0": state[0],
        "c_0": state[1] if len(state) == 2 else None,
        "start": start,
        "max_length": 3,
        "eos": 2,
        "pad": 0,
        "scores": True,
    }
    return tuple({**values, **changes}.values())


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell):
    op = get(f"{cell}_greedy")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.library.opcheck(op, op_arguments(cell, dtype))
    torch.library.opcheck(op, op_arguments(cell, bias=False, bias_out=None, scores=False))


def test_the_op_has_no_gradient():
    embedding = op_arguments("gru")[0].clone().requires_grad_()
    h_n = get("gru_greedy")(*op_arguments("gru", embedding=embedding))[3]
    with pytest.raises(RuntimeError, match="not differentiable"):
        h_n.sum().backward()


def test_fake_tensors_have_the_shapes():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [
            mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in op_arguments("lstm")
        ]
        tokens, lengths, log_probs, h_n, c_n = get("lstm_greedy")(*fake)
    assert tokens.shape == (4, 3) and tokens.dtype == lengths.dtype == torch.int64
    assert log_probs.shape == (4,) and h_n.shape == c_n.shape == (3, 4, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": torch.tensor([0, 1, 2, 64])}, "start token 64 of row 3 is outside"),
        ({"eos": 64}, "eos 64 is outside the vocabulary of 64"),
        ({"max_length": -2}, "max_length is -2"),
        ({"c_0": torch.zeros(3, 4, 32)}, "this cell has no c_0"),
        ({"weight_hh": [torch.zeros(96, 32)]}, "3 weight_ih for 1 weight_hh"),
        ({"bias_hh": []}, None),
        ({"bias_out": torch.zeros(63)}, "expected bias_out of size [64], got [63]"),
        ({"h_0": torch.zeros(3, 4, 31)}, "expected h_0 of size [3, 4, 32], got [3, 4, 31]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_op_checks_again(changes, message):
    op = get("gru_greedy")
    if message is None:
        op(*op_arguments("gru", **changes))
        return
    with pytest.raises(RuntimeError, match=re.escape(message)):
        op(*op_arguments("gru", **changes))


@pytest.mark.parametrize("backend", ["persistent", "graph"])
def test_a_backend_of_another_device_says_so(backend):
    with pytest.raises(RuntimeError, match="it runs on cuda, the weights are on cpu"):
        greedy(**arguments(backend=backend))
