"""torch.func and higher derivatives: vmap, per-sample gradients, jvp, double backward."""

import pytest
import torch
from pairs import state, trio
from tolerance import assert_parity
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

import seqkernels

# torch scripts its own forward-mode formulas when they are first asked for.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

KINDS = ("LSTM", "GRU", "RNN")
LAYERS = {
    "LSTM": lambda: seqkernels.LSTM(3, 4, dtype=torch.float64),
    "LSTM stacked": lambda: seqkernels.LSTM(
        3, 4, 2, bidirectional=True, proj_size=2, dtype=torch.float64
    ),
    "GRU": lambda: seqkernels.GRU(3, 4, 2, dtype=torch.float64),
    "GRU reset before": lambda: seqkernels.GRU(3, 4, reset="before", dtype=torch.float64),
    "RNN": lambda: seqkernels.RNN(3, 4, bidirectional=True, dtype=torch.float64),
    "LSTMCell": lambda: seqkernels.LSTMCell(3, 4, dtype=torch.float64),
    "GRUCell": lambda: seqkernels.GRUCell(3, 4, dtype=torch.float64),
    "GRUCell reset before": lambda: seqkernels.GRUCell(3, 4, reset="before", dtype=torch.float64),
    "RNNCell": lambda: seqkernels.RNNCell(3, 4, dtype=torch.float64),
}
every_module = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())


def _input(module, batch=2):
    cell = isinstance(module, nn.RNNCellBase)
    return torch.randn(*((batch, 3) if cell else (3, batch, 3)), dtype=torch.float64)


def _flat(results):
    if isinstance(results, torch.Tensor):
        return (results,)
    return tuple(t for r in results for t in _flat(r))


@every_module
def test_double_backward(build):
    module = build()
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def call(x, *parameters):
        return _flat(functional_call(module, dict(zip(names, parameters, strict=True)), (x,)))

    x = _input(module).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_penalty(kind):
    """The usual reason for double backward: the norm of the input's gradient in the loss."""
    ours, theirs, _ = trio(kind, 3, 4)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output, _ = module(leaf)
        (gradient,) = torch.autograd.grad(output.sum(), leaf, create_graph=True)
        (gradient.norm() - 1).square().backward()
    for name, parameter in theirs.named_parameters():
        found = ours.get_parameter(name).grad
        expected = parameter.grad
        if expected is None:
            assert found is None or not found.any()
        else:
            assert_parity(found, None, expected, name)


@every_module
def test_forward_mode(build):
    """J v by forward mode is J v by two reverse passes."""
    module = build()
    x, v = _input(module), _input(module)

    def call(x):
        return torch.cat([r.flatten() for r in _flat(module(x))])

    value, tangent = jvp(call, (x,), (v,))
    assert_parity(value, None, call(x), "value")
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.functional.jacobian(call, leaf).flatten(1) @ v.flatten()
    assert_parity(tangent, None, expected, "tangent")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        assert_parity(forward_ad.unpack_dual(call(dual)).tangent, None, expected, "tangent")


@every_module
def test_vmap_over_inputs(build):
    module = build()
    xs = torch.stack([_input(module) for _ in range(3)])
    expected = [_flat(module(x)) for x in xs]
    found = _flat(vmap(module)(xs))
    for index, result in enumerate(found):
        wanted = torch.stack([e[index] for e in expected])
        assert_parity(result, None, wanted, f"result {index}")


@every_module
def test_ensemble(build):
    """vmap over parameters: several models at once."""
    modules = [build() for _ in range(3)]
    x = _input(modules[0])
    parameters, buffers = stack_module_state(modules)
    found = _flat(
        vmap(lambda p, b: functional_call(modules[0], (p, b), (x,)), (0, 0))(parameters, buffers)
    )
    for index, result in enumerate(found):
        wanted = torch.stack([_flat(m(x))[index] for m in modules])
        assert_parity(result, None, wanted, f"result {index}")


@every_module
def test_per_sample_gradients(build):
    module = build()
    parameters = dict(module.named_parameters())
    dim = 0 if isinstance(module, nn.RNNCellBase) else 1
    x = _input(module, batch=3)

    def loss(parameters, sample):
        results = functional_call(module, parameters, (sample.unsqueeze(dim),))
        return _flat(results)[0].square().sum()

    found = vmap(grad(loss), (None, dim))(parameters, x)
    for n in range(3):
        value = loss(parameters, x.select(dim, n))
        expected = torch.autograd.grad(value, list(parameters.values()))
        for name, wanted in zip(parameters, expected, strict=True):
            assert_parity(found[name][n], None, wanted, name)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_and_hessian(kind):
    ours, theirs, _ = trio(kind, 2, 3)
    x = torch.randn(3, 1, 2, dtype=torch.float64)
    found, expected = (jacrev(lambda x, m=m: m(x)[0])(x) for m in (ours, theirs))
    assert_parity(found, None, expected, "jacobian")
    if kind != "LSTM":  # torch's LSTM has no batching rule for its hessian
        found, expected = (hessian(lambda x, m=m: m(x)[0].sum())(x) for m in (ours, theirs))
        assert_parity(found, None, expected, "hessian")


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_reset_under_vmap(kind):
    layer = trio(kind, 3, 4, bidirectional=True).ours
    xs = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    lengths = torch.tensor([[4, 1, 3], [2, 2, 4]])
    reset = torch.rand(2, 4, 3) < 0.3
    found = vmap(lambda x, n, r: layer(x, lengths=n, reset=r)[0])(xs, lengths, reset)
    for x, n, r, result in zip(xs, lengths, reset, found, strict=True):
        assert_parity(result, None, layer(x, lengths=n, reset=r)[0], "output")


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_gradients(kind):
    """A meta-learning step: gradients flow through parameters that are not leaves."""
    ours, theirs, _ = trio(kind, 3, 4)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    hx = state(kind, (2,), 4)
    found = []
    for module in (ours, theirs):
        parameters = dict(module.named_parameters())
        inner = functional_call(module, parameters, (x, hx))[0].square().sum()
        steps = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
        updated = {n: p - 0.1 * s for (n, p), s in zip(parameters.items(), steps, strict=True)}
        outer = functional_call(module, updated, (x, hx))[0].square().sum()
        found.append(torch.autograd.grad(outer, list(parameters.values())))
    for name, a, b in zip(dict(ours.named_parameters()), *found, strict=True):
        assert_parity(a, None, b, name)
