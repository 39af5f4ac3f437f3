"""When Triton is chosen: before `stepwise` unless it clearly loses, and before `reference`."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import seqkernels.triton
from seqkernels import dispatch, functional
from seqkernels.cells import CELLS
from seqkernels.triton.estimate import Device

SMALL, LARGE = (16, 256), (1024, 2048)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """An H100 as far as dispatch can see."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(seqkernels.triton, "device_of", lambda device: Device(132, 227 << 10))


def compiled(monkeypatch, module):
    monkeypatch.setattr(dispatch._extension, "C", module)


@pytest.fixture
def with_cuda(monkeypatch):
    """The extension with CUDA kernels, none of which keeps the weights on chip."""
    module = SimpleNamespace(
        with_cuda=True,
        device_refusal=lambda index: None,
        persistent_refusal=lambda *question: "no plan",
    )
    compiled(monkeypatch, module)


@pytest.fixture
def without_extension(monkeypatch):
    compiled(monkeypatch, None)


def call(size, cell="lstm", **changes):
    facts = {"device": torch.device("cuda", 0), "dtype": torch.float16, "steps": 100}
    facts |= {"batch": size[0], "hidden_size": size[1], "input_size": size[1]}
    return dispatch.Call(cell, **(facts | changes))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_triton_stands_behind_stepwise_where_it_clearly_loses(with_cuda, cell, training):
    assert dispatch.choose(call(SMALL, cell, training=training)).name == "triton"
    assert dispatch.choose(call(LARGE, cell, training=training)).name == "stepwise"


def test_the_explanation_says_why(with_cuda):
    first, *others = dispatch.explain_call(call(LARGE))
    assert first.startswith("It runs on stepwise")
    assert any("triton was not used: a step is estimated to take" in said for said in others)
    assert dispatch.explain_call(call(SMALL))[0].startswith("It runs on triton")


def test_a_named_backend_runs_all_the_same(with_cuda):
    assert dispatch.choose(call(LARGE), "triton").name == "triton"


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("cell", CELLS)
def test_without_the_extension_triton_comes_before_the_reference(without_extension, cell, size):
    assert dispatch.choose(call(size, cell)).name == "triton"


def test_what_triton_cannot_run_goes_on(with_cuda, monkeypatch):
    assert dispatch.choose(call(LARGE, dtype=torch.float64)).name == "stepwise"
    compiled(monkeypatch, None)
    assert dispatch.choose(call(LARGE, dtype=torch.float64)).name == "reference"


def test_an_empty_batch_is_no_shape_to_compare(with_cuda):
    assert dispatch.choose(call((0, 2048))).name == "triton"


def test_the_choice_can_be_compiled(with_cuda):
    @torch.compile(fullgraph=True, backend="eager")
    def name_of(x, size):
        return x, dispatch.choose(call((x.shape[0], size), training=True)).name

    torch._dynamo.reset()
    # A launch of `persistent` is planned for one batch, so every batch is compiled for itself.
    for batch, name in ((1024, "stepwise"), (16, "triton"), (900, "stepwise"), (9, "triton")):
        assert name_of(torch.ones(batch, 1), 2048)[1] == name


class Ops(TorchDispatchMode):
    """Notes the ops of this project."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "seqkernels":
            self.found.append(function._schema.name.split("::")[1])
        return function(*args, **(kwargs or {}))

    def __init__(self):
        super().__init__()
        self.found = []


@pytest.mark.parametrize("cell", CELLS)
def test_layers_and_cells_use_the_triton_ops_without_the_extension(without_extension, cell):
    spec = CELLS[cell]
    with FakeTensorMode(), Ops() as ops:
        x = torch.empty(5, 3, 8, device="cuda")
        state = tuple(torch.empty(3, 8, device="cuda") for _ in range(spec.states))
        weights = [torch.empty(spec.gates * 8, 8, device="cuda") for _ in range(2)]
        functional.sequence(cell, x, state, *weights)
        if spec.pointwise:
            functional.cell(cell, torch.empty(3, 8, device="cuda"), state, *weights)
    assert ops.found[0] == f"{cell}_sequence_triton"
    assert ops.found[1:] == ([f"{cell}_cell_triton"] if spec.pointwise else [])
