"""patch(): which calls these kernels take and which stay torch's; compilers, transforms, tools."""

import copy
import io
import warnings

import pytest
import torch
from spied import Spy
from tolerance import assert_parity
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules import rnn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_map

import seqkernels
from seqkernels import _extension

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


@pytest.fixture
def calls(monkeypatch):
    """The names of torch's functions that torch.nn's layers called, inside patch()."""
    spy = Spy()
    monkeypatch.setattr(rnn, "_VF", spy)
    with seqkernels.patch():
        yield spy.calls


def _function(kind):
    return kind.lower().replace("rnn", "rnn_tanh").replace("cell", "_cell")


def _make(kind, *args, dtype=torch.float64, **options):
    return getattr(nn, kind)(4, 6, *args, dtype=dtype, **options)


def _input(kind, dtype=torch.float64):
    return torch.randn(*((3, 4) if kind.endswith("Cell") else (5, 3, 4)), dtype=dtype)


def _state(kind, dtype=torch.float64):
    h = torch.randn(*((3, 6) if kind.endswith("Cell") else (1, 3, 6)), dtype=dtype)
    return (h, h.clone()) if kind.startswith("LSTM") else h


def _flat(results):
    if isinstance(results, torch.Tensor):
        return (results,)
    return tuple(t for r in results for t in _flat(r))


def _same(found, expected):
    for ours, theirs in zip(_flat(found), _flat(expected), strict=True):
        assert_parity(ours, theirs, theirs, "result")


class Tagged(torch.Tensor):
    """A tensor of a class of its own."""


@pytest.mark.parametrize("kind", KINDS)
def test_these_kernels_take_an_ordinary_call(calls, kind):
    """The fallbacks below would all pass if torch computed everything."""
    _make(kind)(_input(kind))
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_torchs(calls, kind, monkeypatch):
    name, module = _function(kind), _make(kind)
    x = _input(kind)
    module(x.as_subclass(Tagged))
    assert calls == [name]
    module(x, tree_map(lambda h: h.as_subclass(Tagged), _state(kind)))
    assert calls == [name] * 2
    with torch.device("meta"):
        _make(kind)(_input(kind))
    assert calls == [name] * 3
    with monkeypatch.context() as without:
        without.setattr(_extension, "C", None)
        module(x)
    assert calls == [name] * 4
    module(x)
    assert calls == [name] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_torchs(kind):
    module = _make(kind)
    x, hx = _input(kind), _state(kind)
    cases = {
        "state dtype": (x, _state(kind, torch.float32)),
        "input size": (x[..., :3], hx),
        "state size": (x, tuple(h[..., :5] for h in hx) if isinstance(hx, tuple) else hx[..., :5]),
        "batch": (x, tuple(h[..., :2, :] for h in hx) if isinstance(hx, tuple) else hx[..., :2, :]),
        "no steps": (x[:0], hx),
        "device": (x.to("meta"), hx),
        "dtype": (x.float(), hx),
        "integers": (x.long(), hx),
    }
    for name, arguments in cases.items():
        found = []
        for block in (seqkernels.patch, None):
            try:
                if block is None:
                    module(*arguments)
                else:
                    with block():
                        module(*arguments)
            except Exception as error:
                found.append((type(error), str(error)))
            else:
                found.append(None)
        assert found[0] == found[1], name


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_weights_that_do_not_fit(kind):
    """torch does not look at the sizes of weights before it computes; nor do these kernels run."""
    module = _make(kind)
    name = next(n for n, _ in module.named_parameters() if n.startswith("weight_hh"))
    setattr(module, name, nn.Parameter(torch.randn(5, 7, dtype=torch.float64)))
    with pytest.raises(RuntimeError) as theirs:
        module(_input(kind))
    with seqkernels.patch(), pytest.raises(RuntimeError) as ours:
        module(_input(kind))
    assert str(ours.value) == str(theirs.value)


def test_a_named_backend_runs_or_says_why(calls):
    layer, x = _make("GRU"), _input("GRU")
    with seqkernels.use_backend("reference"):
        layer(x)
    with seqkernels.use_backend("onednn"), pytest.raises(RuntimeError, match="LSTM alone"):
        layer(x)
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_is_that_of_this_package(calls, kind):
    module, x = _make(kind, dtype=torch.float32), _input(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
        expected = seqkernels.convert(copy.deepcopy(module))(x)
    assert calls == []
    for ours, right in zip(_flat(found), _flat(expected), strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_inference(calls, kind, mode):
    module, x = _make(kind), _input(kind)
    with mode():
        found = module(x)
    assert calls == [] and not any(t.requires_grad for t in _flat(found))
    _same(found, [t.detach() for t in _flat(module(x))])


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind):
    """functional_call, per-sample gradients and double backward."""
    module = _make(kind)
    x = _input(kind)
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    dim = 0 if kind.endswith("Cell") else 1

    def loss(parameters, sample):
        results = functional_call(module, parameters, (sample.unsqueeze(dim),))
        return _flat(results)[0].square().sum()

    expected = functional_call(module, doubled, (x,))
    with seqkernels.patch():
        _same(functional_call(module, doubled, (x,)), expected)
        samples = vmap(grad(loss), (None, dim))(doubled, x)
    for name in doubled:
        sums = grad(lambda p: sum(loss(p, x.select(dim, n)) for n in range(3)))(doubled)
        assert_parity(samples[name].sum(0), None, sums[name], name)
    leaf = x.clone().requires_grad_()
    with seqkernels.patch():
        assert torch.autograd.gradgradcheck(lambda x: _flat(module(x)), (leaf,), fast_mode=True)


def test_gradients_land_in_the_same_parameters(calls):
    layer = _make("LSTM", 2, bidirectional=True)
    parameters = list(layer.parameters())
    layer(_input("LSTM"))[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters)
    assert all(a is b for a, b in zip(layer._flat_weights, parameters, strict=True))
    torch.optim.SGD(parameters, 0.1).step()
    before = layer(_input("LSTM"))[0]
    layer.zero_grad()
    assert before.requires_grad and calls == []


def test_copies_replicas_and_hooks(calls):
    layer, x, seen = _make("GRU"), _input("GRU"), []
    expected = layer(x)[0]
    assert torch.equal(copy.deepcopy(layer)(x)[0], expected)
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer.named_parameters():
        setattr(replica, name, parameter * 1)  # as replicate() does: tensors, not parameters
    assert torch.equal(replica(x)[0], expected)
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.weight_hh_l0.register_hook(lambda _: seen.append("gradient"))
    layer(x.requires_grad_())[0].sum().backward()
    assert sorted(seen) == ["backward", "forward", "gradient"] and calls == []


def test_explain():
    model = nn.Sequential(_make("LSTM", 2))
    with seqkernels.patch():
        text = seqkernels.explain(model, _input("LSTM"))
        cell = seqkernels.explain(_make("GRUCell"), _input("GRUCell"))
        packed = seqkernels.explain(_make("GRU"), pack_sequence([_input("RNNCell")]))
    assert text.count("lstm: 5 steps, batch size 3") == 2
    assert text.count("It runs on native") == 2
    assert cell.startswith("gru: 1 steps, batch size 3") and "packed input" in packed
    outside = seqkernels.explain(model, _input("LSTM"))
    assert outside == "no recurrent layer of seqkernels was called"


@pytest.fixture
def graphs():
    """A backend for torch.compile and the names of the operations that it was given."""
    torch._dynamo.reset()
    found = []

    def backend(graph, _):
        found.append(" ".join(str(node.target) for node in graph.graph.nodes))
        return graph.forward

    backend.found = found
    yield backend
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_compiled_cell_is_compiled_again_for_a_block(graphs, kind):
    module, x = _make(kind), _input(kind)
    expected = module(x)
    compiled = torch.compile(module, backend=graphs, fullgraph=True)
    _same(compiled(x), expected)
    assert len(graphs.found) == 1 and "seqkernels" not in graphs.found[0]
    with seqkernels.patch():
        _same(compiled(x), expected)
    _same(compiled(x), expected)
    with seqkernels.patch():
        _same(compiled(x), expected)
    assert len(graphs.found) == 2 and "seqkernels" in graphs.found[1]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_compiled_model_runs_its_layers_eagerly(graphs, calls, kind):
    """torch.compile breaks its graph at torch.nn's layers, patched or not; ours compute there."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lower, self.layer = nn.Linear(4, 4, dtype=torch.float64), _make(kind)

        def forward(self, x):
            return self.layer(self.lower(x))[0].sin()

    model, x = Model(), _input(kind)
    compiled = torch.compile(model, backend=graphs)
    _same(compiled(x), model(x))
    assert calls == [] and not any("seqkernels" in text for text in graphs.found)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="does not support RNN, GRU, or LSTM"):
        torch.compile(model, backend=graphs, fullgraph=True)(x)


def test_a_model_compiled_before_its_block(graphs, monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), _make("GRU")), _input("GRU")
    compiled, spy = torch.compile(model, backend=graphs), Spy()
    monkeypatch.setattr(rnn, "_VF", spy)
    expected = compiled(x)
    assert spy.calls == ["gru"]
    with seqkernels.patch():
        _same(compiled(x), expected)
    assert spy.calls == ["gru"]
    compiled(x)
    assert spy.calls == ["gru", "gru"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_in_one_graph_where_torch_allows_it(graphs, kind):
    layer, x = _make(kind, 2, bidirectional=True, batch_first=True), _input(kind)
    expected = layer(x)
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    with torch._dynamo.config.patch(allow_rnn=True):
        with seqkernels.patch():
            _same(compiled(x), expected)
        _same(compiled(x), expected)
    assert ["seqkernels" in text for text in graphs.found] == [True, False]


# torch itself assigns its list of weights while it exports.
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
def test_an_exported_program_is_torchs():
    layer, x = _make("GRU").eval(), _input("GRU")
    with seqkernels.patch():
        program = torch.export.export(layer, (x,))
    assert not any("seqkernels" in str(node.target) for node in program.graph.nodes)
    _same(program.module()(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
def test_torchscript_is_torchs(kind):
    module, x = nn.Sequential(_make(kind)).eval(), _input(kind)
    with seqkernels.patch():
        scripted, traced = torch.jit.script(module), torch.jit.trace(module, (x,))
    assert f"aten::{_function(kind)}" in str(scripted.inlined_graph)
    for program in (scripted, traced):
        assert "seqkernels::" not in str(program.inlined_graph)
        file = io.BytesIO()
        torch.jit.save(program, file)
        file.seek(0)
        _same(torch.jit.load(file)(x), module(x))


def test_a_quantised_model_is_torchs(calls):
    model = nn.Sequential(nn.LSTM(4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert "quantized" in type(quantised[0]).__module__
    assert torch.allclose(quantised(_input("LSTM", torch.float32))[0], torch.zeros(()), atol=2)
