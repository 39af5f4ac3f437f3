"""The recipes do what the page says: they train on these kernels, to torch.nn's numbers."""

import ast
import re
from pathlib import Path

import pytest

from bench import recipes
from bench.contestants import BASELINE, OURS

ROOT = Path(__file__).resolve().parent.parent
EVERY = [pytest.param(n, marks=pytest.mark.needs(r.package)) for n, r in recipes.RECIPES.items()]
# Of each recipe's `train`: enough to step the optimiser.
STEPS = {"sb3_recurrent_ppo": 512}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EVERY)
def test_trains_as_torch_does(name):
    found = recipes.measure(name, rounds=0, steps=STEPS.get(name, 3))
    assert found["values"][OURS] == pytest.approx(found["values"][BASELINE], rel=1e-5)
    assert found["dispatched"][BASELINE] == 0
    assert found["dispatched"][OURS] > 2


def _train(name: str) -> ast.FunctionDef:
    body = ast.parse((recipes.FOLDER / f"{name}.py").read_text()).body
    return next(node for node in body if getattr(node, "name", None) == "train")


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_what_a_reader_copies_is_short(name):
    documentation, *_, last = _train(name).body
    assert 10 <= last.end_lineno - documentation.end_lineno <= 20


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_call_is_the_one_that_the_table_names(name):
    text = (recipes.FOLDER / f"{name}.py").read_text()
    call = recipes.RECIPES[name].call
    other = {"patch": "convert", "convert": "patch"}[call]
    assert f"seqkernels.{call}(" in text and f"seqkernels.{other}(" not in text
    assert f"examples/recipes/{name}.py" in (ROOT / "docs" / "frameworks.md").read_text()


def test_every_recipe_is_measured():
    assert {path.stem for path in recipes.FOLDER.glob("*.py")} == recipes.RECIPES.keys()


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(recipes, "find_spec", lambda name: None)
    document = recipes.run(["gluonts_deepar"], rounds=1)
    assert document["results"] == []
    assert recipes.table(document).endswith(
        'Not measured: gluonts_deepar, gluonts is not installed: `pip install "gluonts[torch]"`.'
    )


def test_a_recipe_that_fails_hides_no_other(monkeypatch):
    broken = recipes.Recipe("x", "patch", "torch", "torch")
    monkeypatch.setattr(recipes, "RECIPES", {"nothing": broken})
    document = recipes.run(["nothing"])
    assert "No module named 'nothing'" in document["left_out"]["nothing"]


def test_table():
    times = {"p20": 1.5, "p80": 2.5, "contended": False}
    document = {
        "settings": {"rounds": 3},
        "results": [
            {
                "name": "espnet_lm",
                "version": "1.0",
                "values": {BASELINE: 2.0, OURS: 2.0002},
                "times": {BASELINE: times | {"median": 2.0}, OURS: times | {"median": 1.0}},
            }
        ],
        "left_out": {},
    }
    assert recipes.table(document).splitlines()[2] == (
        "| espnet, LSTM language model | espnet 1.0 | `patch` | 2.00 | 1.50–2.50"
        " | 1.00 | 1.50–2.50 | **2.00×** | 1e-04 |"
    )
    document["results"][0]["times"][OURS]["contended"] = True
    assert "| **2.00×**\\* |" in recipes.table(document)
    assert "the machine was busy" in recipes.table(document)


def test_the_extra_installs_what_pip_alone_can():
    text = (ROOT / "pyproject.toml").read_text()
    (extra,) = re.findall(r"^recipes = (\[.*\])$", text, re.MULTILINE)
    names = {recipe.package for recipe in recipes.RECIPES.values()} - {"speechbrain", "espnet"}
    assert {name.partition("[")[0] for name in ast.literal_eval(extra)} == names
