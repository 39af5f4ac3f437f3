"""What a module promises beside its numbers: names, copies, devices, parametrisations."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from pairs import trio
from tolerance import assert_parity
from torch import nn
from torch.nn.utils import parametrize, prune, skip_init

import seqkernels

LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM everything": (
        "LSTM",
        {"num_layers": 2, "bias": False, "bidirectional": True, "proj_size": 3},
    ),
    "GRU": ("GRU", {"num_layers": 3}),
    "RNN": ("RNN", {"bidirectional": True}),
}
CELLS = {kind: (kind, {}) for kind in ("LSTMCell", "GRUCell", "RNNCell")}
CELLS["GRUCell without bias"] = ("GRUCell", {"bias": False})
MODULES = LAYERS | CELLS

modules = pytest.mark.parametrize("kind, options", MODULES.values(), ids=MODULES.keys())
# torch warns that its own projected LSTM leaves oneDNN.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

layers = pytest.mark.parametrize("kind, options", LAYERS.values(), ids=LAYERS.keys())


def _ours(kind, options, **more):
    return getattr(seqkernels, kind)(5, 7, **options, **more)


def _theirs(kind, options, **more):
    return getattr(nn, kind)(5, 7, **options, **more)


def _input(kind, dtype=torch.float32):
    return torch.randn(*((3, 5) if kind.endswith("Cell") else (4, 3, 5)), dtype=dtype)


def _first(results):
    return results if isinstance(results, torch.Tensor) else results[0]


def _assert_same_output(kind, a, b, dtype=torch.float32):
    x = _input(kind, dtype)
    assert torch.equal(_first(a(x)), _first(b(x)))


@modules
def test_state_dict_loads_both_ways(kind, options):
    ours, theirs = _ours(kind, options), _theirs(kind, options)
    own, foreign = ours.state_dict(), theirs.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in own.items()] == [
        (k, v.shape, v.dtype) for k, v in foreign.items()
    ]
    for source, target in ((ours, theirs), (theirs, ours)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name])


@modules
def test_wrong_state_dict_is_refused(kind, options):
    ours = _ours(kind, options)
    state = ours.state_dict()
    missing = dict(list(state.items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours.load_state_dict({**state, "weight_ih_l9": torch.zeros(1)})


@modules
def test_initial_values_are_torchs(kind, options):
    torch.manual_seed(3)
    ours = _ours(kind, options)
    torch.manual_seed(3)
    theirs = _theirs(kind, options)
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name), parameter)


@modules
def test_repr_and_names(kind, options):
    ours, theirs = _ours(kind, options), _theirs(kind, options)
    assert repr(ours) == repr(theirs)
    assert repr(seqkernels.GRU(5, 7, reset="before")) == "GRU(5, 7, reset=before)"
    assert repr(seqkernels.GRUCell(5, 7, update="replace")) == "GRUCell(5, 7, update=replace)"
    shared = {k for k in vars(theirs) if not k.startswith("_")}
    assert {k: getattr(ours, k) for k in shared} == {k: getattr(theirs, k) for k in shared}


@layers
def test_all_weights_and_flatten_parameters(kind, options):
    ours, theirs = _ours(kind, options), _theirs(kind, options)
    ours.flatten_parameters()
    names = {id(p): n for n, p in [*ours.named_parameters(), *theirs.named_parameters()]}
    found, expected = (
        [[names[id(w)] for w in row] for row in m.all_weights] for m in (ours, theirs)
    )
    assert found == expected
    assert [id(w) for w in ours._flat_weights] == [id(p) for p in ours.parameters()]


@pytest.mark.parametrize("form", [{}, {"reset": "before"}, {"update": "replace"}])
def test_the_form_of_a_gru_survives_copies(form):
    for module in (seqkernels.GRU(5, 7, **form), seqkernels.GRUCell(5, 7, **form)):
        x = torch.randn(3, 5)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert repr(copied) == repr(module)
            assert torch.equal(copied(x)[0], module(x)[0])


@modules
def test_pickle(kind, options):
    ours = _ours(kind, options)
    _assert_same_output(kind, pickle.loads(pickle.dumps(ours)), ours)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    _assert_same_output(kind, torch.load(buffer, weights_only=False), ours)


@modules
def test_deepcopy_is_independent(kind, options):
    ours = _ours(kind, options)
    copied = copy.deepcopy(ours)
    _assert_same_output(kind, copied, ours)
    x = _input(kind)
    before = _first(ours(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert torch.equal(_first(ours(x)), before)
    assert not torch.equal(_first(copied(x)), before)


@modules
def test_module_frees_its_parameters(kind, options):
    """Nothing keeps a deleted module's parameters alive."""
    ours = _ours(kind, options)
    _first(ours(_input(kind))).sum().backward()
    seen = [weakref.ref(p) for p in ours.parameters()]
    del ours
    assert all(ref() is None for ref in seen)


@modules
def test_meta_device(kind, options):
    ours = _ours(kind, options, device="meta")
    assert all(p.is_meta for p in ours.parameters())
    output = _first(ours(_input(kind).to("meta")))
    assert output.is_meta
    assert output.shape == _first(_theirs(kind, options)(_input(kind))).shape
    filled = ours.to_empty(device="cpu")
    filled.load_state_dict(_ours(kind, options).state_dict())
    assert torch.isfinite(_first(filled(_input(kind)))).all()


@modules
def test_skip_init(kind, options):
    """Which torch's own layers refuse."""
    ours = skip_init(getattr(seqkernels, kind), 5, 7, **options)
    source = _theirs(kind, options)
    ours.load_state_dict(source.state_dict())
    x = _input(kind)
    assert _first(ours(x)).shape == _first(source(x)).shape


@modules
def test_conversions(kind, options):
    ours = _ours(kind, options)
    assert ours.double() is ours
    output = _first(ours(_input(kind, torch.float64)))
    assert output.dtype == torch.float64
    ours.to(torch.bfloat16)
    assert _first(ours(_input(kind, torch.bfloat16))).dtype == torch.bfloat16
    created = _ours(kind, options, dtype=torch.float16)
    assert {p.dtype for p in created.parameters()} == {torch.float16}


@modules
def test_swapped_parameters(kind, options):
    """torch's own layers refuse to load or convert under swap_module_params."""
    previous = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        ours = _ours(kind, options)
        _first(ours(_input(kind)))
        kept = list(ours.parameters())
        ours.double()
        assert all(a is b for a, b in zip(kept, ours.parameters(), strict=True))
        source = _theirs(kind, options).double()
        ours.load_state_dict(source.state_dict())
        x = _input(kind, torch.float64)
        assert_parity(_first(ours(x)), None, _first(source(x)), "output")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(previous)


@modules
def test_assigned_state_dict(kind, options):
    source = _theirs(kind, options, dtype=torch.float64)
    ours = _ours(kind, options, device="meta", dtype=torch.float64)
    ours.load_state_dict(source.state_dict(), assign=True)
    x = _input(kind, torch.float64)
    assert_parity(_first(ours(x)), None, _first(source(x)), "output")


@modules
def test_functional_call(kind, options):
    ours, other = _ours(kind, options), _ours(kind, options)
    x = _input(kind)
    before = _first(ours(x))
    parameters = dict(other.named_parameters())
    assert torch.equal(_first(torch.func.functional_call(ours, parameters, (x,))), _first(other(x)))
    assert torch.equal(_first(ours(x)), before)


@layers
def test_replaced_parameter_is_used(kind, options):
    ours, theirs = _ours(kind, options).double(), _theirs(kind, options).double()
    for module in (ours, theirs):
        torch.manual_seed(2)
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(torch.randn_like(parameter) / 3))
    x = _input(kind, torch.float64)
    assert_parity(_first(ours(x)), None, _first(theirs(x)), "output")


@modules
def test_tied_weights(kind, options):
    """Two layers that share a parameter add up its gradients, and state_dict keeps both names."""
    pairs = []
    for build in (_ours, _theirs):
        torch.manual_seed(4)
        a, b = build(kind, options).double(), build(kind, options).double()
        name = next(n for n, _ in a.named_parameters() if n.startswith("weight_hh"))
        setattr(b, name, getattr(a, name))
        pairs.append((a, b, name))
    x = _input(kind, torch.float64)
    grads = []
    for a, b, name in pairs:
        (_first(a(x)).sum() + _first(b(x)).square().sum()).backward()
        assert len(list(nn.ModuleList([a, b]).parameters())) == 2 * len(list(a.parameters())) - 1
        grads.append(getattr(b, name).grad)
    assert_parity(grads[0], None, grads[1], "gradient of the shared weight")


class _Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@modules
def test_parametrised(kind, options):
    """Numbers, gradients, to() and removal as in torch, and deepcopy, which torch's refuse."""
    ours, theirs, _ = trio(kind, 5, 7, **options)
    name = next(n for n, _ in ours.named_parameters() if n.startswith("weight_hh"))
    x = _input(kind, torch.float64)
    for module in (ours, theirs):
        parametrize.register_parametrization(module, name, _Halved())
        _first(module(x)).square().sum().backward()
    for key, parameter in theirs.named_parameters():
        assert_parity(ours.get_parameter(key).grad, None, parameter.grad, key)
    copied = copy.deepcopy(ours)
    assert torch.equal(_first(copied(x)), _first(ours(x)))
    expected = _first(ours(x))
    ours.to(torch.float32).to(torch.float64)
    parametrize.remove_parametrizations(ours, name)
    assert type(ours) is getattr(seqkernels, kind)
    assert torch.allclose(_first(ours(x)), expected, atol=1e-6)


@modules
def test_weight_norm_and_pruning(kind, options):
    ours, theirs, _ = trio(kind, 5, 7, **options)
    name = next(n for n, _ in ours.named_parameters() if n.startswith("weight_hh"))
    x = _input(kind, torch.float64)
    for module in (ours, theirs):
        nn.utils.parametrizations.weight_norm(module, name)
        other = name.replace("hh", "ih")
        torch.manual_seed(5)
        prune.random_unstructured(module, other, amount=0.5)
    assert_parity(_first(ours(x)), None, _first(theirs(x)), "output")
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@modules
def test_replicas_share_weights_with_nobody(kind, options):
    """What DataParallel does to a module: plain tensors in place of its parameters."""
    ours = _ours(kind, options)
    replica = ours._replicate_for_data_parallel()
    for name, parameter in ours._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.detach() * 0.5)
    x = _input(kind)
    assert not torch.equal(_first(replica(x)), _first(ours(x)))


@layers
def test_share_memory_and_zero_grad(kind, options):
    ours = _ours(kind, options)
    ours.share_memory()
    _first(ours(_input(kind))).sum().backward()
    assert all(p.is_shared() and p.grad is not None for p in ours.parameters())
    ours.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_inherited_checks_answer_as_torch():
    """Methods that users of torch.nn's layers call: the base class's, on our parameters."""
    ours, theirs = seqkernels.LSTM(5, 7, 2), nn.LSTM(5, 7, 2)
    x = torch.randn(4, 3, 5)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    ours.check_input(x, None)
    with pytest.raises(RuntimeError, match="Expected 5, got 6"):
        ours.check_input(torch.randn(4, 3, 6), None)
    with pytest.raises(ValueError, match="does not match weight dtype"):
        ours.check_input(x.double(), None)
