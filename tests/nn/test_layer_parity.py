"""LSTM, GRU and RNN against torch.nn: results, final states and every gradient."""

import pytest
import torch
from pairs import DTYPES, assert_same, assert_same_over, run, state, trio
from tolerance import assert_parity
from torch import nn

import seqkernels

pytestmark = pytest.mark.usefixtures("backend")

KINDS = ("LSTM", "GRU", "RNN")

# Named shapes (T, N, I, H): single units, odd tails, more than one vector and one block of rows.
SHAPES = {
    "T1-N1-I3-H2": (1, 1, 3, 2),
    "T7-N3-I4-H5": (7, 3, 4, 5),
    "T12-N2-I9-H64": (12, 2, 9, 64),
    "T5-N17-I8-H33": (5, 17, 8, 33),
    "T30-N1-I16-H100": (30, 1, 16, 100),
}

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "three layers": {"num_layers": 3},
    "everything": {
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "bidirectional": True,
    },
}


def _input(steps, batch, size, batch_first=False):
    shape = (batch, steps, size) if batch_first else (steps, batch, size)
    return torch.randn(shape, dtype=torch.float64)


def _state(kind, batch, hidden_size, options):
    return state(
        kind,
        batch,
        hidden_size,
        layers=options.get("num_layers", 1),
        directions=2 if options.get("bidirectional") else 1,
        proj_size=options.get("proj_size", 0),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind, shape, dtype):
    steps, batch, input_size, hidden_size = shape
    samples = 1 if hidden_size > 10 else 20
    assert_same_over(
        [
            (
                trio(kind, input_size, hidden_size, dtype=dtype),
                (_input(steps, batch, input_size), state(kind, (batch,), hidden_size)),
            )
            for _ in range(samples)
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_single_numbers(kind):
    assert_same(trio(kind, 1, 1), _input(1, 1, 1), state(kind, (1,), 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, options, dtype):
    modules = trio(kind, 6, 10, dtype=dtype, **options)
    x = _input(6, 4, 6, options.get("batch_first", False))
    assert_same(modules, x, None)
    assert_same(modules, x, _state(kind, (4,), 10, options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu(dtype):
    modules = trio("RNN", 6, 10, 2, "relu", dtype=dtype)
    assert_same(modules, _input(6, 4, 6), state("RNN", (4,), 10, layers=2))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind, options):
    modules = trio(kind, 6, 10, **options)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert_same(modules, x, None)
    assert_same(modules, x, _state(kind, (), 10, options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_empty_batch(kind, given):
    modules = trio(kind, 6, 10, num_layers=2, bidirectional=True)
    hx = state(kind, (0,), 10, layers=2, directions=2) if given else None
    assert_same(modules, _input(4, 0, 6), hx)


@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous(kind):
    modules = trio(kind, 6, 10)
    x = torch.randn(6, 3, 2, 5, dtype=torch.float64)[:, :, 0].permute(2, 1, 0)
    hx = torch.randn(10, 3, 1, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous() and not hx.is_contiguous()
    assert_same(modules, x, (hx, hx * 2) if kind == "LSTM" else hx)
    assert_same(modules, x[:1].expand(5, 3, 6), None)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_without_gradients(kind):
    ours, theirs, _ = trio(kind, 6, 10, num_layers=2, dropout=0.5)
    x = _input(6, 4, 6)
    ours.eval()
    theirs.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, expected = ours(x)[0], theirs(x)[0]
        assert not output.requires_grad
        assert_parity(output, None, expected, "output")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_evaluation(kind):
    modules = trio(kind, 6, 10)
    for module in modules:
        module.eval()
    assert_same(modules, _input(6, 4, 6), state(kind, (4,), 10))


@pytest.mark.parametrize("kind", KINDS)
def test_second_backward_is_equal(kind):
    ours = trio(kind, 6, 10).ours
    output, _ = ours(_input(6, 4, 6))
    loss = output.square().sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameter(kind, frozen):
    ours, theirs, _ = trio(kind, 6, 10)
    x = _input(6, 4, 6)
    for module in (ours, theirs):
        module.get_parameter(frozen).requires_grad_(False)
        module(x)[0].square().sum().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name).grad
        assert (parameter.grad is None) == (expected is None) == (name == frozen)
        if expected is not None:
            assert_parity(parameter.grad, None, expected, name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_input_alone(kind):
    modules = trio(kind, 6, 10, num_layers=2)
    x = _input(6, 4, 6)
    grads = []
    for module in modules:
        module.requires_grad_(False)
        leaf = x.clone().requires_grad_()
        module(leaf)[1][0].sum().backward()
        grads.append(leaf.grad)
    assert_parity(grads[0], grads[1], grads[2], "gradient of the input")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_reset_before(options, dtype):
    """There is no twin in torch: the reference recurrence stands for it, in both precisions."""
    ours = seqkernels.GRU(6, 10, dtype=dtype, reset="before", **options)
    exact = seqkernels.GRU(6, 10, dtype=torch.float64, reset="before", **options)
    exact.load_state_dict(ours.state_dict())
    x = _input(6, 4, 6, options.get("batch_first", False)).to(dtype)
    args = (x, _state("GRU", (4,), 10, options).to(dtype))
    found = run(ours, dtype, args)
    with seqkernels.use_backend("reference"):
        theirs = run(ours, dtype, args)
        expected = run(exact, torch.float64, args)
    for name, value in found.items():
        assert_parity(value, theirs[name], expected[name], name)


@pytest.mark.parametrize("update", ["keep", "replace"])
def test_reset_before_is_the_literature_form(update):
    """Cho et al. 2014, equations 5 to 8, and with z the other way about Chung et al. 2014."""
    ours = seqkernels.GRU(3, 4, reset="before", update=update, dtype=torch.float64)
    x, h = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    w_r, w_z, w_n = ours.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = ours.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = (ours.bias_ih_l0 + ours.bias_hh_l0).chunk(3)
    r = torch.sigmoid(x @ w_r.T + h @ u_r.T + b_r)
    z = torch.sigmoid(x @ w_z.T + h @ u_z.T + b_z)
    n = torch.tanh(x @ w_n.T + (r * h) @ u_n.T + b_n)
    wanted = z * h + (1 - z) * n if update == "keep" else (1 - z) * h + z * n
    assert_parity(ours(x[None], h[None])[0][0], None, wanted, "h")
    cell = seqkernels.GRUCell(3, 4, reset="before", update=update, dtype=torch.float64)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in ours.state_dict().items()})
    assert_parity(cell(x, h), None, wanted, "h of the cell")


def test_update_replace_after_the_product():
    """The same turn of z in torch's own form, for a whole layer and its gradients."""
    ours = seqkernels.GRU(3, 4, 2, update="replace", dtype=torch.float64)
    exact = torch.nn.GRU(3, 4, 2, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(exact.parameters(), ours.parameters(), strict=True):
            one.copy_(other)
            one[4:8].neg_()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found, wanted = ours(x)[0], exact(x)[0]
    assert_parity(found, None, wanted, "output")
    for output in (found, wanted):
        output.square().sum().backward()
    for one, other in zip(exact.parameters(), ours.parameters(), strict=True):
        one.grad[4:8].neg_()
        assert_parity(other.grad, None, one.grad, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_bit_equal(kind):
    ours = trio(kind, 6, 33, dtype=torch.float32, bidirectional=True).ours
    x = _input(9, 5, 6)
    first, second = (run(ours, torch.float32, (x, None)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent(kind):
    """A row of NaN leaves the others what they are."""
    ours = trio(kind, 6, 10, dtype=torch.float32, num_layers=2, bidirectional=True).ours
    x = _input(6, 5, 6).float()
    expected = ours(x)[0]
    x[:, 2] = torch.nan
    output = ours(x)[0]
    kept = [0, 1, 3, 4]
    assert output[:, 2].isnan().all()
    assert torch.equal(output[:, kept], expected[:, kept])


def test_c_sequence():
    """The cell state after step t is c_n of the sequence cut after it."""
    options = {"num_layers": 2, "batch_first": True}
    ours = seqkernels.LSTM(6, 10, dtype=torch.float64, **options)
    theirs = nn.LSTM(6, 10, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    x = _input(5, 3, 6, batch_first=True)
    output, (_, c_n), c_sequence = ours(x, return_c_sequence=True)
    assert c_sequence.shape == output.shape
    assert_parity(c_sequence[:, -1], None, c_n[-1], "last c")
    for t in range(1, 6):
        _, (_, expected) = theirs(x[:, :t])
        assert_parity(c_sequence[:, t - 1], None, expected[-1], f"c after {t} steps")


def test_c_sequence_gradient():
    """Gradients flow from the cell states: they are those of a loop over LSTMCell."""
    ours = seqkernels.LSTM(6, 10, dtype=torch.float64)
    cell = nn.LSTMCell(6, 10, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in ours.state_dict().items()})
    x = _input(5, 3, 6)
    weights = torch.randn(5, 3, 10, dtype=torch.float64)
    (ours(x, return_c_sequence=True)[2] * weights).sum().backward()
    carried, loss = None, 0
    for t in range(5):
        carried = cell(x[t], carried)
        loss = loss + (carried[1] * weights[t]).sum()
    loss.backward()
    for name, parameter in cell.named_parameters():
        found = ours.get_parameter(f"{name}_l0").grad
        assert_parity(found, None, parameter.grad, name)


# torch warns that its own projected LSTM leaves oneDNN.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("proj_size", [1, 4, 9])
def test_projection(proj_size, dtype):
    options = {"proj_size": proj_size, "num_layers": 2, "bidirectional": True}
    modules = trio("LSTM", 6, 10, dtype=dtype, **options)
    x = _input(6, 4, 6)
    assert_same(modules, x, None)
    assert_same(modules, x, _state("LSTM", (4,), 10, options))


def test_projection_without_bias():
    options = {"proj_size": 3, "bias": False}
    modules = trio("LSTM", 6, 10, **options)
    assert_same(modules, _input(6, 4, 6), _state("LSTM", (4,), 10, options))


def test_modules_keep_no_graph():
    """Trained step by step with a detached state, a layer frees what each step saved."""
    ours = trio("GRU", 6, 10).ours
    h = None
    for _ in range(3):
        output, h = ours(_input(4, 2, 6), h)
        h = h.detach()
        output.sum().backward()
    assert h.grad_fn is None
