"""convert() and revert(): every layer swapped in place, everything else kept."""

import copy
import pickle
import warnings

import pytest
import torch
from tolerance import assert_parity
from torch import nn
from torch.nn.utils import parametrize

import seqkernels

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class Tagger(nn.Module):
    """A model with nested recurrent layers of several kinds, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.encoder = nn.ModuleDict(
            {
                "lower": nn.LSTM(6, 8, bidirectional=True, batch_first=True),
                "upper": nn.Sequential(nn.GRU(16, 8, 2, dropout=0.1, batch_first=True)),
            }
        )
        self.shared = self.encoder["upper"][0]
        self.cell = nn.GRUCell(8, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, tokens):
        x, _ = self.encoder["lower"](self.embedding(tokens))
        x, h = self.shared(x)
        return self.out(x + self.cell(x[:, -1], h[-1]).unsqueeze(1))


def _sample(kind):
    return torch.randn(*((3, 4) if kind.endswith("Cell") else (5, 3, 4)), dtype=torch.float64)


def _first(results):
    return results if isinstance(results, torch.Tensor) else results[0]


@pytest.mark.parametrize("kind", KINDS)
def test_model_that_is_a_layer(kind):
    layer = getattr(nn, kind)(4, 6, dtype=torch.float64)
    x = _sample(kind)
    expected = _first(layer(x)).detach()
    parameters = list(layer.parameters())
    converted = seqkernels.convert(layer)
    assert converted is layer and type(layer) is getattr(seqkernels, kind)
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    assert_parity(_first(layer(x)), None, expected, "converted")
    assert seqkernels.revert(layer) is layer and type(layer) is getattr(nn, kind)
    assert_parity(_first(layer(x)), None, expected, "reverted")
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))


def test_nested_model():
    model = Tagger().double().eval()
    tokens = torch.randint(20, (3, 7))
    expected = model(tokens).detach()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    seqkernels.convert(model)
    kinds = {type(m) for m in model.modules()}
    assert {seqkernels.LSTM, seqkernels.GRU, seqkernels.GRUCell} <= kinds
    assert not {nn.LSTM, nn.GRU, nn.GRUCell} & kinds
    assert model.shared is model.encoder["upper"][0]
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert_parity(model(tokens), None, expected, "converted")
    assert state.keys() == model.state_dict().keys()
    seqkernels.convert(model)  # a second time changes nothing
    assert {type(m) for m in model.modules()} == kinds
    seqkernels.revert(model)
    assert_parity(model(tokens), None, expected, "reverted")
    assert {nn.LSTM, nn.GRU, nn.GRUCell} <= {type(m) for m in model.modules()}


def test_options_training_flag_and_state_are_kept():
    for layer in (
        nn.RNN(4, 6, 2, "relu", bias=False, dropout=0.2, batch_first=True),
        nn.LSTM(4, 6, proj_size=3, bidirectional=True),
        nn.GRU(4, 6, 3).eval(),
        nn.RNNCell(4, 6, bias=False, nonlinearity="relu"),
    ):
        layer.note = "mine"
        text, training = repr(layer), layer.training
        seqkernels.convert(layer)
        assert (repr(layer), layer.training, layer.note) == (text, training, "mine")
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert type(copied) is type(layer) and repr(copied) == text


def test_hooks_are_kept():
    layer, calls = nn.GRU(4, 6), []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.weight_hh_l0.register_hook(lambda _: calls.append("gradient"))
    seqkernels.convert(layer)
    layer(torch.randn(5, 3, 4, requires_grad=True))[0].sum().backward()
    assert sorted(calls) == ["backward", "before", "forward", "gradient"]


def test_converted_layer_holds_no_second_reference():
    """torch's layers keep a list of their weights; after load_state_dict(assign=True) it lies."""
    layer = seqkernels.convert(nn.LSTM(4, 6))
    replacement = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    layer.load_state_dict(replacement, assign=True)
    assert not layer(torch.randn(5, 3, 4))[0].any()


def test_reverted_layer_works_with_later_parameters():
    layer = seqkernels.LSTM(4, 6)
    layer.weight_hh_l0 = nn.Parameter(torch.zeros_like(layer.weight_hh_l0))
    seqkernels.revert(layer)
    assert layer._flat_weights[1] is layer.weight_hh_l0
    pickle.loads(pickle.dumps(layer))(torch.randn(5, 3, 4))


class _Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("kind", KINDS)
def test_parametrised(kind):
    layer = getattr(nn, kind)(4, 6, dtype=torch.float64)
    name = next(n for n, _ in layer.named_parameters() if n.startswith("weight_hh"))
    parametrize.register_parametrization(layer, name, _Halved())
    x = _sample(kind)
    expected = _first(layer(x)).detach()
    seqkernels.convert(layer)
    assert isinstance(layer, getattr(seqkernels, kind))
    assert parametrize.is_parametrized(layer, name)
    assert_parity(_first(layer(x)), None, expected, "converted")
    assert_parity(_first(copy.deepcopy(layer)(x)), None, expected, "copied")
    seqkernels.revert(layer)
    assert isinstance(layer, getattr(nn, kind))
    assert_parity(_first(layer(x)), None, expected, "reverted")
    seqkernels.convert(layer)
    parametrize.remove_parametrizations(layer, name)
    assert type(layer) is getattr(seqkernels, kind)
    assert_parity(_first(layer(x)), None, expected, "without parametrisation")


class _OwnLSTM(nn.LSTM):
    """A subclass may compute anything."""


class _OwnCell(nn.GRUCell):
    """A subclass may compute anything."""


def test_subclasses_are_left_alone_and_reported():
    model = nn.ModuleDict({"own": _OwnLSTM(4, 6), "cell": _OwnCell(4, 6), "plain": nn.GRU(4, 6)})
    with pytest.warns(UserWarning) as found:
        seqkernels.convert(model)
    (text,) = (str(warning.message) for warning in found)
    assert text == (
        "convert left alone 'own' (test_convert._OwnLSTM): its class derives from torch.nn.LSTM "
        "and may compute something else; seqkernels.patch() runs it where it calls that class's "
        "forward; 'cell' (test_convert._OwnCell): its class derives from torch.nn.GRUCell and may "
        "compute something else; seqkernels.patch() runs it where it calls that class's forward"
    )
    assert type(model["own"]) is _OwnLSTM and type(model["cell"]) is _OwnCell
    assert type(model["plain"]) is seqkernels.GRU
    with pytest.warns(UserWarning, match=r"the test_convert\._OwnLSTM itself"):
        assert type(seqkernels.convert(_OwnLSTM(4, 6))) is _OwnLSTM


def test_a_subclass_of_this_package_is_left_alone_by_revert():
    class Own(seqkernels.GRU):
        """A subclass may compute anything."""

    with pytest.warns(UserWarning, match=r"Own itself: its class derives from seqkernels\.GRU"):
        assert type(seqkernels.revert(Own(4, 6))) is Own


def test_scripted_layer_is_left_alone_and_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model = nn.ModuleDict({"scripted": torch.jit.script(nn.GRUCell(4, 6))})
    with pytest.warns(UserWarning, match="compiled by TorchScript; convert the model that"):
        seqkernels.convert(model)


def test_quantised_layer_is_left_alone_and_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        quantised = torch.ao.nn.quantized.dynamic.LSTM(4, 6)
    text = r"'0' \(torch\.ao\..*\.LSTM\): it is quantised and stays torch's; revert is not needed"
    with pytest.warns(UserWarning, match=text):
        seqkernels.convert(nn.Sequential(quantised))


def _quantise(model, *args):
    """quantize_dynamic, and what was warned of seqkernels."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quantised = torch.ao.quantization.quantize_dynamic(model, *args)
    return quantised, [str(w.message) for w in found if "seqkernels" in str(w.message)]


class _TwoKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.cell, self.linear = nn.LSTM(4, 6), nn.GRUCell(6, 6), nn.Linear(6, 2)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (None, ["LSTM", "GRUCell"]),
        ({nn.LSTM, nn.Linear}, ["LSTM"]),
        ({seqkernels.LSTM}, ["LSTM"]),
        ({"cell"}, ["GRUCell"]),
        ({nn.Linear}, []),
    ],
)
def test_quantising_a_converted_model_says_what_stays(spec, kinds):
    model = seqkernels.convert(_TwoKinds())
    quantised, told = _quantise(model, *([] if spec is None else [spec]))
    assert [text.split()[0] for text in told] == [f"seqkernels.{kind}" for kind in kinds]
    assert all("looks for torch.nn." in text and "seqkernels.revert" in text for text in told)
    assert type(quantised.lstm) is seqkernels.LSTM and not hasattr(quantised.lstm, "qconfig")
    assert _quantise(seqkernels.revert(model), {nn.LSTM, nn.Linear})[1] == []


def test_a_parametrised_layer_says_that_it_is_not_quantised():
    layer = seqkernels.convert(nn.LSTM(4, 6))
    parametrize.register_parametrization(layer, "weight_hh_l0", _Halved())
    _, told = _quantise(nn.Sequential(layer), {"0"})
    assert told[0].startswith("seqkernels.LSTM is not quantised")


def test_an_attribute_called_qconfig_is_the_users():
    layer = seqkernels.LSTM(4, 6)
    layer.qconfig = "mine"
    layer.qconfig = None
    assert layer.qconfig is None


def test_a_layer_prepared_for_quantisation_keeps_its_class():
    model = _TwoKinds()
    model.lstm.qconfig = torch.ao.quantization.default_dynamic_qconfig
    with pytest.warns(UserWarning, match=r"'lstm' .*prepared for quantisation"):
        seqkernels.convert(model)
    assert type(model.lstm) is nn.LSTM and type(model.cell) is seqkernels.GRUCell


def test_a_layer_with_hooks_of_opacus_keeps_its_class():
    def hook(*_):
        pass

    hook.__module__ = "opacus.grad_sample.grad_sample_module"
    model = nn.ModuleList([nn.LSTM(4, 6), nn.LSTM(4, 6)])
    model[0].register_forward_hook(hook)
    with pytest.warns(UserWarning, match="'0' .*opacus has hooks on it"):
        seqkernels.convert(model)
    assert type(model[0]) is nn.LSTM and type(model[1]) is seqkernels.LSTM


@pytest.mark.parametrize("form", [{"reset": "before"}, {"update": "replace"}])
def test_other_forms_of_a_gru_have_no_twin(form):
    model = nn.ModuleDict({"layer": seqkernels.GRU(4, 6, **form), "plain": seqkernels.GRU(4, 6)})
    with pytest.warns(UserWarning, match=r"revert left alone 'layer' \(\S+GRU\).*no GRU with \w+="):
        seqkernels.revert(model)
    assert type(model["layer"]) is seqkernels.GRU and type(model["plain"]) is nn.GRU


def test_model_without_recurrent_layers():
    model = nn.Linear(3, 4)
    assert seqkernels.revert(seqkernels.convert(model)) is model
    assert type(model) is nn.Linear
