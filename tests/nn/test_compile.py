"""torch.compile without a graph break, torch.export with a dynamic length, and fake tensors."""

import pytest
import torch
from pairs import trio
from tolerance import assert_parity
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence

import seqkernels


@pytest.fixture(autouse=True)
def nothing_compiled():
    """A test's compilations do not count towards the limit of the next one's."""
    torch._dynamo.reset()


def _input(kind, batch=3, steps=4):
    return torch.randn(*((batch, 5) if kind.endswith("Cell") else (steps, batch, 5)))


def _flat(results):
    if isinstance(results, torch.Tensor):
        return [results]
    return [t for r in results for t in _flat(r)]


CASES = {
    "LSTM stacked": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "GRU": ("GRU", {}),
    "GRU reset before": ("GRU", {"reset": "before"}),
    "RNN": ("RNN", {"nonlinearity": "relu"}),
    "LSTMCell": ("LSTMCell", {}),
    "GRUCell": ("GRUCell", {}),
    "GRUCell reset before": ("GRUCell", {"reset": "before"}),
    "RNNCell": ("RNNCell", {}),
}


@pytest.mark.parametrize("kind, options", CASES.values(), ids=CASES.keys())
def test_whole_graph(kind, options):
    """Forward and backward compiled by AOTAutograd give the eager numbers."""
    module = getattr(seqkernels, kind)(5, 6, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (3, 2):  # the second shape compiles with a dynamic batch
        runs = []
        x = _input(kind, batch)
        for call in (module, compiled):
            leaf = x.clone().requires_grad_()
            results = _flat(call(leaf))
            loss = sum((r * (i + 1)).square().sum() for i, r in enumerate(results))
            runs.append([*results, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
        for index, (eager, found) in enumerate(zip(*runs, strict=True)):
            assert_parity(found, eager, eager.double(), f"{index}")
    with torch.no_grad():
        eager, found = _flat(module(x))[0], _flat(compiled(x))[0]
    assert_parity(found, eager, eager.double(), "inference")


# torch's inductor still uses torch.jit, which torch calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_inductor():
    """The default backend of torch.compile, around a layer between two others."""
    model = nn.Sequential(nn.Linear(5, 5), seqkernels.GRU(5, 6))
    compiled = torch.compile(model, fullgraph=True)
    x = _input("GRU")
    runs = []
    for call in (model, compiled):
        output, h_n = call(x)
        grads = torch.autograd.grad((output.sin() * h_n).sum(), list(model.parameters()))
        runs.append([output, h_n, *grads])
    for eager, found in zip(*runs, strict=True):
        assert_parity(found, eager, eager.double(), "result")


def test_lengths_and_reset_in_one_graph():
    module = seqkernels.LSTM(5, 6, bidirectional=True, proj_size=3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths, reset = _input("LSTM"), torch.tensor([4, 1, 3]), torch.rand(4, 3) < 0.3
    keywords = {"lengths": lengths, "reset": reset, "return_c_sequence": True}
    for found, eager in zip(
        _flat(compiled(x, **keywords)), _flat(module(x, **keywords)), strict=True
    ):
        assert_parity(found, eager, eager.double(), "result")


@pytest.mark.parametrize(
    "kind, options", [CASES["LSTM stacked"], CASES["LSTM projected"], CASES["GRU reset before"]]
)
def test_packed_input_in_one_graph(kind, options):
    """Training, too: the batch sizes, numbers on the CPU, need not be known to the compiler."""
    module = getattr(seqkernels, kind)(5, 6, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for lengths in ((4, 2, 2), (3, 3, 1), (1, 6, 2, 5), (2,)):
        packed = pack_sequence([torch.randn(n, 5) for n in lengths], enforce_sorted=False)
        runs = []
        for call in (module, compiled):
            output, state = call(packed)
            results = [output.data, *_flat(state)]
            loss = sum((r * (i + 1)).square().sum() for i, r in enumerate(results))
            runs.append([*results, *torch.autograd.grad(loss, list(module.parameters()))])
        for index, (eager, found) in enumerate(zip(*runs, strict=True)):
            assert_parity(found, eager, eager.double(), f"{index}")


def test_one_compilation_for_many_lengths():
    """A dynamic length compiles once: the recurrence is one op, not unrolled."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    module = seqkernels.GRU(5, 6)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=count)
    for steps in (4, 9, 17, 30):
        x = _input("GRU", steps=steps)
        assert torch.equal(compiled(x)[0], module(x)[0])
    assert len(graphs) == 1


def test_wide_inference():
    """Where the eager layer would take oneDNN, the compiled one does not break."""
    module = seqkernels.LSTM(5, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = _input("LSTM", batch=40)
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_export_with_dynamic_length(kind):
    module = getattr(seqkernels, kind)(5, 6, 2, bidirectional=True, batch_first=True).eval()
    x = torch.randn(2, 7, 5)
    steps, batch = torch.export.Dim("steps"), torch.export.Dim("batch")
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: batch, 1: steps}})
    for shape in ((2, 7, 5), (3, 19, 5), (4, 2, 5)):
        y = torch.randn(shape)
        for found, eager in zip(_flat(program.module()(y)), _flat(module(y)), strict=True):
            assert_parity(found, eager, eager.double(), "result")


def test_converted_model_compiles():
    model = seqkernels.convert(nn.Sequential(nn.LSTM(5, 6)))
    x = _input("LSTM")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], model(x)[0])


@pytest.mark.parametrize("kind, options", CASES.values(), ids=CASES.keys())
def test_fake_tensors(kind, options):
    """Shapes can be asked for without computing."""
    module = getattr(seqkernels, kind)(5, 6, **options)
    x = _input(kind)
    expected = _flat(module(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = _flat(module(mode.from_tensor(x)))
    assert [f.shape for f in found] == [e.shape for e in expected]


def test_trio_is_exported_alike():
    """The exported program of a converted torch layer is that of ours."""
    ours, theirs, _ = trio("GRU", 5, 6, dtype=torch.float32)
    seqkernels.convert(theirs)
    x = _input("GRU")
    programs = [torch.export.export(m.eval(), (x,)) for m in (ours, theirs)]
    targets = [[str(n.target) for n in p.graph.nodes] for p in programs]
    assert targets[0] == targets[1]
    assert any("seqkernels" in t for t in targets[0])
