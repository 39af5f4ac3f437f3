"""Programs captured for inference run with grad mode on, and give the layer's gradients."""

import warnings

import pytest
import torch
from pairs import tensors_of
from tolerance import assert_parity
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import seqkernels

KINDS = {
    "LSTM": lambda **k: seqkernels.LSTM(5, 6, 2, bidirectional=True, **k),
    "LSTM projected": lambda **k: seqkernels.LSTM(5, 6, proj_size=3, **k),
    "GRU": lambda **k: seqkernels.GRU(5, 6, 2, **k),
    "GRU reset before": lambda **k: seqkernels.GRU(5, 6, reset="before", **k),
    "RNN": lambda **k: seqkernels.RNN(5, 6, **k),
    "LSTMCell": lambda **k: seqkernels.LSTMCell(5, 6, **k),
    "GRUCell": lambda **k: seqkernels.GRUCell(5, 6, **k),
    "RNNCell": lambda **k: seqkernels.RNNCell(5, 6, **k),
}


def _run_decompositions(program):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own pytrees
        return program.run_decompositions()


def _export(module, x):
    return torch.export.export(module, (x,)).module()


def _decomposed(module, x):
    return _run_decompositions(torch.export.export(module, (x,))).module()


def _strict(module, x):
    return torch.export.export(module, (x,), strict=True).module()


def _trace(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, (x,), check_trace=False)


def _make_fx(module, x):
    return make_fx(module)(x)


def _symbolic(module, x):
    return make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)


CAPTURES = {f.__name__.strip("_"): f for f in (_export, _decomposed, _strict, _trace, _make_fx)}
CAPTURES["symbolic make_fx"] = _symbolic
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "frozen": torch.enable_grad,
}


def _input(kind, rows, dtype):
    shape = (rows, 5) if "Cell" in kind else (4, rows, 5)
    return torch.randn(shape, dtype=dtype)


# One row takes other ops than many; in float32 twenty would take oneDNN's LSTM outside a capture.
ROWS = (1, 20)

# Every kind with every capture, and both of them in every mode with every number of rows.
SETS = [
    (kind, capture, list(MODES)[(i + j) % 3], ROWS[(i + j // 3) % 2])
    for i, kind in enumerate(KINDS)
    for j, capture in enumerate(CAPTURES)
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind, capture, mode, rows", SETS)
def test_a_captured_program_has_gradients(kind, capture, mode, rows):
    check_captured(kind, CAPTURES[capture], mode, rows)


@pytest.mark.parametrize("capture, mode, rows", [("export", "no_grad", 20), ("trace", "frozen", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_some_captured_programs(kind, capture, mode, rows):
    check_captured(kind, CAPTURES[capture], mode, rows)


def check_captured(kind, capture, mode, rows):
    """Capture a module in a mode, run it with grad mode on, and compare results and gradients."""
    torch.manual_seed(0)
    module = KINDS[kind]().eval().requires_grad_(mode != "frozen")
    with MODES[mode]():
        program = capture(module, _input(kind, rows, torch.float32))
    x = _input(kind, rows, torch.float32)
    results = []
    for run in (program, module):
        leaf = x.clone().requires_grad_()
        found = tensors_of(run(leaf))
        loss = sum((r * (i + 1)).square().sum() for i, r in enumerate(found))
        results.append([*(r.detach() for r in found), torch.autograd.grad(loss, leaf)[0]])
    leaf = x.double().requires_grad_()
    found = tensors_of(module.double()(leaf))
    loss = sum((r * (i + 1)).square().sum() for i, r in enumerate(found))
    exact = [*(r.detach() for r in found), torch.autograd.grad(loss, leaf)[0]]
    for index, (ours, theirs, truth) in enumerate(zip(*results, exact, strict=True)):
        assert_parity(ours, theirs, truth, f"result {index}")


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = seqkernels.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x, lengths):
        return self.out(self.rnn(x, lengths=lengths)[0])


def test_an_exported_program_trains_on():
    """Exported under no_grad with every size dynamic, saved weights are trained further."""
    model = _Model().eval()
    n, t = torch.export.Dim("n", min=1), torch.export.Dim("t", min=2)
    shapes = {"x": {0: n, 1: t}, "lengths": {0: n}}
    example = (torch.randn(3, 7, 5), torch.tensor([7, 2, 4]))
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes)
    for run in (program.module(), _run_decompositions(program).module()):
        x, lengths = torch.randn(6, 9, 5), torch.tensor([9, 1, 4, 9, 3, 2])
        grads = []
        for module in (run, model):
            module.zero_grad()
            module(x, lengths).square().sum().backward()
            grads.append({name: p.grad for name, p in module.named_parameters()})
        assert grads[0].keys() == grads[1].keys()
        for name, grad in grads[0].items():
            assert grad is not None and torch.allclose(grad, grads[1][name], atol=1e-5), name
