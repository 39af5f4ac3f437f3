"""The linear layer and the dropout that training is made of, against torch's."""

import pytest
import torch
from tolerance import assert_parity
from torch import nn

from seqkernels.seq2seq.dropout import Dropout
from seqkernels.seq2seq.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 3, 33), (50, 64, 96), (5, 96)], ids=str)
def test_linear_is_torchs(shape, bias):
    ours, theirs = Linear(shape[-1], 200, bias=bias), nn.Linear(shape[-1], 200, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    exact = nn.Linear(shape[-1], 200, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    grad = torch.randn(*shape[:-1], 200)
    results = []
    for layer in (ours, theirs, exact):
        own = x.detach().clone().to(layer.weight.dtype).requires_grad_()
        y = layer(own)
        y.backward(grad.to(y.dtype))
        results.append((y, own.grad, *(p.grad for p in layer.parameters())))
    for name, *tensors in zip(("y", "x", "weight", "bias"), *results, strict=False):
        assert_parity(*tensors, name)


def test_linear_has_a_second_derivative():
    layer = Linear(4, 3)
    x = torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    expected = 2 * (layer.weight.t() @ layer.weight).sum(0).expand(5, 4)
    torch.testing.assert_close(second, expected)


def test_linear_leaves_other_dtypes_to_torch():
    layer = Linear(4, 3).double()
    assert torch.autograd.gradcheck(
        layer, torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_the_mean(p):
    layer, x = Dropout(p), torch.ones(501, 801)
    y = layer(x)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16)
    assert y[y != 0].unique().numel() == 1
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    # The four elements of one draw are independent.
    dropped = (y == 0).float().flatten()[: 501 * 800].view(-1, 4)
    together = (dropped.t() @ dropped) / len(dropped)
    assert (together - p * p - torch.eye(4) * (p - p * p)).abs().max() < 0.01


def test_dropout_follows_the_seed_and_has_the_gradient_of_its_mask():
    layer = Dropout(0.3)
    x = torch.randn(6, 7, requires_grad=True)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, layer(x))
    first.sum().backward()
    torch.testing.assert_close(x.grad * x, first)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_all_or_nothing(p):
    x = torch.randn(5, 3)
    assert torch.equal(Dropout(p)(x), x * (1 - p))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert Dropout(0.5)(x[:0]).shape == (0, 3)
