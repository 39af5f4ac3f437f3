"""LSTMCell, GRUCell and RNNCell against torch.nn, and GRUCell's other reset."""

import pytest
import torch
from pairs import DTYPES, Trio, assert_same_over, run, trio
from tolerance import assert_parity
from torch import nn

import seqkernels

pytestmark = pytest.mark.usefixtures("backend")

KINDS = ("LSTMCell", "GRUCell", "RNNCell")
SHAPES = {
    "N1-I1-H1": (1, 1, 1),
    "N3-I4-H5": (3, 4, 5),
    "N2-I9-H64": (2, 9, 64),
    "N17-I8-H33": (17, 8, 33),
}


def _arguments(kind, batch, input_size, hidden_size):
    x = torch.randn(*batch, input_size, dtype=torch.float64)
    h = torch.randn(*batch, hidden_size, dtype=torch.float64)
    return x, (h, torch.randn_like(h)) if kind == "LSTMCell" else h


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_step(kind, shape, bias, dtype):
    batch, input_size, hidden_size = shape
    samples = 20 if batch * hidden_size > 10 else 60
    assert_same_over(
        [
            (
                trio(kind, input_size, hidden_size, bias, dtype=dtype),
                _arguments(kind, (batch,), input_size, hidden_size),
            )
            for _ in range(samples)
        ]
    )


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(), (0,), (3,)], ids=["unbatched", "empty", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches(kind, batch, given):
    x, hx = _arguments(kind, batch, 4, 5)
    modules = trio(kind, 4, 5)
    if not given:
        hx = None
    found, expected = (run(m, torch.float64, (x, hx)) for m in modules[:2])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_parity(value, None, expected[name], name)


def test_relu():
    modules = trio("RNNCell", 4, 5, True, "relu", dtype=torch.float32)
    assert_same_over([(modules, _arguments("RNNCell", (3,), 4, 5)) for _ in range(20)])


class _Loop(nn.Module):
    """A cell applied to every step."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, hx):
        outputs = []
        for step in x:
            hx = self.cell(step, hx)
            outputs.append(hx)
        return outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loop(kind, dtype):
    """Six steps and their backward, as torch's own tests do."""
    cases = []
    for _ in range(10):
        _, hx = _arguments(kind, (3,), 10, 20)
        x = torch.randn(6, 3, 10, dtype=torch.float64)
        modules = Trio(*(_Loop(m) for m in trio(kind, 10, 20, dtype=dtype)))
        cases.append((modules, (x, hx)))
    assert_same_over(cases)


@pytest.mark.parametrize("index", [0, 1], ids=["h", "c"])
def test_gradient_of_one_result(index):
    ours, theirs, _ = trio("LSTMCell", 4, 5)
    x, hx = _arguments("LSTMCell", (3,), 4, 5)
    for cell in (ours, theirs):
        cell(x, hx)[index].square().sum().backward()
    for name, parameter in theirs.named_parameters():
        found = ours.get_parameter(name).grad
        assert_parity(found, None, parameter.grad, name)


@pytest.mark.parametrize("kind", KINDS)
def test_inference(kind):
    ours, theirs, _ = trio(kind, 4, 5)
    x, hx = _arguments(kind, (3,), 4, 5)
    with torch.inference_mode():
        found, expected = ours(x, hx), theirs(x, hx)
    for a, b in zip(found, expected, strict=True):
        assert not a.requires_grad
        assert_parity(a, None, b, "state")


def test_reset_before_is_one_step_of_the_layer():
    layer = seqkernels.GRU(4, 5, dtype=torch.float64, reset="before")
    cell = seqkernels.GRUCell(4, 5, dtype=torch.float64, reset="before")
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, h = _arguments("GRUCell", (3,), 4, 5)
    expected = layer(x[None], h[None])[1][0]
    assert_parity(cell(x, h), None, expected, "h")
    weight = torch.randn_like(h)
    grads = torch.autograd.grad((cell(x, h) * weight).sum(), list(cell.parameters()))
    wanted = torch.autograd.grad((expected * weight).sum(), list(layer.parameters()))
    for grad, expected_grad in zip(grads, wanted, strict=True):
        assert_parity(grad, None, expected_grad, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_zero_sizes(kind):
    """torch allows a cell without units or without input features."""
    for sizes in ((3, 0), (0, 3)):
        ours, theirs, _ = trio(kind, *sizes)
        x = torch.zeros(2, sizes[0], dtype=torch.float64)
        found, expected = ours(x), theirs(x)
        for a, b in zip(found, expected, strict=True):
            assert_parity(a, None, b, "state")
