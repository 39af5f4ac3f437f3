"""Adapters against plain stand-ins that have the layouts of the packages they adapt."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import check
from bench.cases import Case
from bench.contestants import Refused
from bench.peers import flashrnn, haste, torchrl
from bench.workload import Workload, results

CPU = torch.device("cpu")


def _compared(cell, mode, build):
    """Errors of torch.nn and of an adapter against the oracle, by tensor."""
    case = Case(cell, 5, 3, 4, 6)
    work = Workload(case, CPU)
    reference = check.expected(case, CPU, mode)
    prepared = build(work)
    returned = prepared.call()
    found = prepared.named(returned) if prepared.named else results(returned, prepared.parameters)
    model = work.model(nn)
    names = [name for name, _ in model.named_parameters()]
    torchs = check.errors(results(work.call(model, mode)(), names), reference)
    return check.errors(found, reference), torchs


class _Haste(nn.Module):
    """Haste's parameters [I, G*H] in its gate order (i g f o, z r n), on torch's recurrence."""

    def __init__(self, cell, input_size, hidden_size):
        super().__init__()
        self.layer = getattr(nn, cell)(input_size, hidden_size)
        self.order = (0, 2, 1, 3) if cell == "LSTM" else (1, 0, 2)

    def _reordered(self, weight):
        chunks = weight.chunk(len(self.order), -1)
        return torch.cat([chunks[i] for i in self.order], -1)

    def from_native_weights(self, weight_ih, weight_hh, bias_ih, bias_hh):
        self.kernel = nn.Parameter(self._reordered(weight_ih.T))
        self.recurrent_kernel = nn.Parameter(self._reordered(weight_hh.T))
        if len(self.order) == 4:
            self.bias = nn.Parameter(self._reordered(bias_ih + bias_hh))
        else:
            self.bias = nn.Parameter(self._reordered(bias_ih))
            self.recurrent_bias = nn.Parameter(self._reordered(bias_hh))
        del self.layer.weight_ih_l0, self.layer.weight_hh_l0
        del self.layer.bias_ih_l0, self.layer.bias_hh_l0

    def forward(self, x):
        # Both orders are their own inverse.
        weight_ih = self._reordered(self.kernel).T
        weight_hh = self._reordered(self.recurrent_kernel).T
        bias_ih = self._reordered(self.bias)
        hidden = getattr(self, "recurrent_bias", None)
        bias_hh = torch.zeros_like(bias_ih) if hidden is None else self._reordered(hidden)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = (weight_ih, weight_hh, bias_ih, bias_hh)
        for name, value in zip(names, weights, strict=True):
            setattr(self.layer, name, value)
        self.layer._flat_weights = list(weights)
        return self.layer(x)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste_weights_and_gradients_are_reordered(monkeypatch, cell, mode):
    package = SimpleNamespace(
        LSTM=lambda i, h: _Haste("LSTM", i, h), GRU=lambda i, h: _Haste("GRU", i, h)
    )
    monkeypatch.setitem(sys.modules, "haste_pytorch", package)
    ours, torchs = _compared(cell, mode, lambda work: haste.build(work, mode))
    assert check.verdict(ours, torchs, torch.float32) is None


def _flashrnn(gates_x, recurrent, bias, *, function, backend, dtype):
    """Its layouts: gates_x [N, T, G, 1, H], recurrent [G, 1, out, in], states [S, N, T, 1, H]."""
    assert (backend, dtype) == ({"lstm": "cuda_fused", "gru": "cuda"}[function], "float32")
    rows, steps, gates, _, hidden = gates_x.shape
    h = c = gates_x.new_zeros(rows, hidden)
    recurrent, bias = recurrent[:, 0], bias[:, 0]
    out = []
    for t in range(steps):
        x = gates_x[:, t, :, 0]
        y = torch.einsum("nh,goh->ngo", h, recurrent)
        if function == "lstm":
            i, f, g, o = (x + y + bias).unbind(1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append((h, c))
        else:
            hidden_n = y[:, 0] + bias[0]
            r = (x[:, 0] + y[:, 1] + bias[1]).sigmoid()
            z = (x[:, 1] + y[:, 2] + bias[2]).sigmoid()
            h = z * h + (1 - z) * (x[:, 2] + bias[3] + r * hidden_n).tanh()
            out.append((h,))
    states = torch.stack([torch.stack(s, 1) for s in zip(*out, strict=True)]).unsqueeze(-2)
    return states, states[:, :, -1:]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_flashrnn_gates_are_laid_out(monkeypatch, cell, mode):
    monkeypatch.setattr(flashrnn, "_patched", lambda: SimpleNamespace(flashrnn=_flashrnn))

    def build(work):
        layer = flashrnn._Layer(work, _flashrnn, flashrnn._BACKENDS[cell])
        return layer.prepared(work, mode)

    ours, torchs = _compared(cell, mode, build)
    assert check.verdict(ours, torchs, torch.float32) is None


@pytest.mark.parametrize(
    ("peer", "case", "reason"),
    [
        (flashrnn, Case("lstm", 2, 1, 4, 4), "its float32 products are TF32"),
        (flashrnn, Case("rnn_relu", 2, 1, 4, 4), "it has no rnn_relu"),
        (haste, Case("lstm", 2, 1, 4, 4, dtype="bfloat16"), "its layers are float32"),
        (torchrl, Case("rnn_tanh", 2, 1, 4, 4), "it has no rnn_tanh"),
        (torchrl, Case("gru", 2, 1, 4, 4, dtype="float16"), "its layers are float32"),
    ],
)
def test_what_a_package_does_not_offer_is_refused(monkeypatch, peer, case, reason):
    monkeypatch.setitem(sys.modules, "haste_pytorch", SimpleNamespace())
    with pytest.raises(Refused, match=reason):
        peer.build(Workload(case, CPU), "inference")
