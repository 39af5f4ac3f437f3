"""Nothing that this package adds to a module takes a name that users give their own things."""

import ast
import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seqkernels

KINDS = {
    "LSTM": {"bidirectional": True},
    "GRU": {"num_layers": 2},
    "RNN": {},
    "LSTMCell": {},
    "GRUCell": {},
    "RNNCell": {},
}
SOURCE = Path(seqkernels.__file__).parent


def _words_of_the_source() -> list[str]:
    """Every name that the layers' own code uses: what a user's name would most likely meet."""
    found = set()
    for path in (*(SOURCE / "nn").glob("*.py"), SOURCE / "functional.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "attr", "arg", "name"):
                word = getattr(node, field, None)
                if isinstance(word, str):
                    found |= {word, word.strip("_"), f"_{word}"}
    return sorted(w for w in found if w.isidentifier() and not w.startswith("_seqkernels"))


# fastai calls `reset`, Lightning `log`; `cell` and `run` are what people call their parts.
NAMES = st.one_of(
    st.sampled_from(["reset", "cell", "run", "step", "log", "state", "update", "hidden"]),
    st.sampled_from(_words_of_the_source()),
)


def _make(kind):
    torch.manual_seed(0)
    return getattr(seqkernels, kind)(3, 4, **KINDS[kind])


def _taken(kind) -> set[str]:
    """The names that torch.nn's own module has: a user who takes one changes that one, too."""
    return set(dir(getattr(nn, kind)(3, 4, **KINDS[kind])))


def _output(module, x):
    return module(x)[0]


def _input(kind):
    return torch.randn(2, 3) if "Cell" in kind else torch.randn(5, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_added_names_are_private(kind):
    added = set(dir(_make(kind))) - _taken(kind)
    assert {n for n in added if not n.startswith(("__", "_seqkernels_"))} == set()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(name=NAMES)
def test_a_name_changes_nothing(kind, name):
    if name in _taken(kind):
        return
    x = _input(kind)
    module = _make(kind)
    expected = _output(module, x)

    def hostile(self, *args, **keywords):
        raise AssertionError(f"the layer called its user's {name}")

    base = type(module)
    inherited = type("Own", (base,), {name: hostile})(3, 4, **KINDS[kind])
    valued = type("Own", (base,), {name: "before"})(3, 4, **KINDS[kind])
    converted = getattr(nn, kind)(3, 4, **KINDS[kind])
    setattr(converted, name, "before")
    seqkernels.convert(converted)
    setattr(module, name, "before")
    for other in (inherited, valued, converted):
        other.load_state_dict(module.state_dict())
    found = [inherited, valued, converted, module, copy.deepcopy(module), copy.deepcopy(converted)]
    found.append(pickle.loads(pickle.dumps(converted)))
    for other in found:
        assert torch.equal(_output(other, x), expected)


def test_a_model_that_resets_its_parts():
    """As fastai does: whatever has a `reset` is reset between batches."""
    model = seqkernels.convert(nn.Sequential(nn.GRU(3, 4), nn.Identity()))
    for module in model.modules():
        assert not hasattr(module, "reset") and not hasattr(module, "cell")
