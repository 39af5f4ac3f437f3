"""What `make gpu` measures with: its table, the plans beside it, refused builds, the checks."""

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from documents import CASE, contestant
from tolerance import assert_parity

from bench.contestants import BASELINE, OURS
from bench.gpu import alive, manifest, ratios, worker
from bench.gpu.protocol import NO_BUILD, append
from bench.gpu.table import PREDICTED, expected_ratio, table
from seqkernels import _extension

ROOT = Path(__file__).resolve().parents[2]
# Only what plans need: an H100.
H100 = SimpleNamespace(plan=lambda *shape, **options: _extension.C.plan(*shape, **options))


def measured(length: int, **medians: float) -> dict:
    rows = [contestant(BASELINE, medians["nn"])]
    rows.append(contestant(OURS, medians.get("ours"), detail="persistent"))
    return {"case": replace(CASE, length=length).to_json(), "contestants": rows}


@pytest.fixture
def path(tmp_path):
    """Steps of 10 µs and launches of 1 ms against 4 µs and 0.5 ms; one refused; one hung."""
    path = tmp_path / "ratios.jsonl"
    plans = [{"text": "forward", "step_ns": 1500.0}, {"text": "backward", "step_ns": 2000.0}]
    long = measured(512, nn=1e-3 + 512e-5, ours=5e-4 + 512 * 4e-6)
    short = measured(128, nn=1e-3 + 128e-5, ours=5e-4 + 128 * 4e-6)
    append(path, {"case": "a training", "result": "ok", "measured": [long, short], "plans": plans})
    refused = [measured(512, nn=1e-3), measured(128, nn=5e-4)]
    plans = [{"text": "do not fit", "step_ns": None}]
    append(
        path,
        {"case": "b inference", "result": "failed", "measured": refused, "plans": plans},
    )
    append(path, {"case": "c inference", "result": "hung", "reason": "the worker was silent"})
    return path


def test_steps_are_slopes_and_launches_intercepts(path, tmp_path):
    predicted = tmp_path / "predicted.json"
    steps = {"torch.nn": 12.0, "seqkernels": 5.0}
    predicted.write_text(json.dumps({"a": {"training": steps}}))
    head, a, b, c, note = table(path, predicted).splitlines()
    # torch.nn, ours, predicted by the plans, launches, ratio of the longer calls, as expected.
    assert a.split() == [
        "a",
        "training",
        "10.00",
        "4.00",
        "3.50",
        "500.00",
        "2.40",
        "2.40",
        "persistent",
    ]
    assert b.split() == ["b", "inference", "1.30", "failed", "persistent"]
    assert c.split() == ["c", "inference", "hung"]
    assert len({len(line) for line in (head, a, b, c)}) == 1 and "slope" in note


def test_every_headline_case_has_a_prediction():
    expected = json.loads(PREDICTED.read_text())
    longest = [case.id for case in ratios.SUITE.cases if case.length == 512]
    assert list(expected) == longest
    for case in expected:
        for mode in ("inference", "training"):
            assert 0.1 < expected_ratio(expected, case, mode) < 20


def test_there_may_be_nothing_to_tell(path, tmp_path):
    assert table(tmp_path / "none.jsonl") == ""
    assert table(path, tmp_path / "none.json").splitlines()[1].split()[-3:] == [
        "500.00",
        "2.40",
        "persistent",
    ]


@pytest.mark.needs("cuda_build")
def test_predictions_are_those_of_the_plans():
    known = {case.id: case for case in ratios.SUITE.cases}
    for case in (known[name] for name in known if "T512" in name):
        for backward in (False, True):
            found = ratios.planned(H100, case.to_json(), backward)
            assert 300 < found["step_ns"] < 12000 and "products" in found["text"]
    two = known["lstm-T512-N16-I512-H512-L2-bfloat16"]
    joint = ratios.planned(H100, two.to_json(), True)
    assert joint["text"].startswith("2 layers in one launch")
    # Together they do not fit.
    wide = replace(two, hidden_size=1024)
    alone = ratios.planned(H100, replace(wide, num_layers=1).to_json(), True)
    apart = ratios.planned(H100, wide.to_json(), True)
    assert apart == {"text": f"2 launches: {alone['text']}", "step_ns": 2 * alone["step_ns"]}
    none = ratios.planned(H100, replace(wide, hidden_size=20000).to_json(), False)
    assert none["step_ns"] is None and "fit" in none["text"]


COMPILES = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.gpu import alive


@triton.jit
def fill(to, VALUE: tl.constexpr):
    tl.store(to, VALUE)


alive.announce_compilations()
source = ASTSource(fn=fill, signature={"to": "*fp32", "VALUE": "constexpr"}, constexprs={(1,): 3.0})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
"""


@pytest.mark.exhaustive
@pytest.mark.needs("triton")
def test_compilations_are_signs_of_life(tmp_path):
    """A stage that compiles is not silent; in a process of its own, without an interpreter."""
    program = tmp_path / "compiles.py"
    program.write_text(COMPILES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    for _ in range(2):  # compiled, then found in the cache
        done = subprocess.run(
            [sys.executable, str(program)], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "compiled fill\n"), done.stderr


def test_the_rehearsal_has_every_kind_of_case_once():
    tiny = {ratios.tiny(case) for case in ratios.SUITE.cases if case.length == 512}
    kinds = {(c.cell, c.dtype, c.batch, c.num_layers, c.bidirectional, c.rows) for c in tiny}
    assert len(tiny) == len(kinds) == 9
    assert all(len(ratios.lengths(case)) == 2 for case in ratios.SUITE.cases)


def test_a_build_of_other_sources_or_that_does_not_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "refusal", lambda: "the build is of other sources")
    with pytest.raises(worker.Unusable, match="no release build: the build is of other") as refused:
        worker.load("release")
    assert refused.value.status == NO_BUILD
    monkeypatch.setattr(manifest, "refusal", lambda: None)
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    (tmp_path / worker.SPIN).mkdir(parents=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / worker.SPIN / f"_C{suffix}").write_text("no library")
    with pytest.raises(worker.Unusable, match="no spin build: .*_C") as refused:
        worker.load("spin")
    assert refused.value.status == NO_BUILD


def test_alive_keeps_the_worst_of_every_quantity_and_fails_with_what_was_found():
    one = torch.ones(3, dtype=torch.float64)

    def check(error):
        assert_parity(one, None, one, "h_n")
        for worse in (1e-13, 5e-13, 0.0):
            assert_parity(one + worse, None, one, "output")
        assert_parity(one + error, None, one, "grad_h_0")

    good = alive.checked(lambda: check(0.0))
    assert "result" not in good and good["errors"]["output"] == [pytest.approx(5e-13), 0.0, 1e-12]
    bad = alive.checked(lambda: check(float("nan")))
    assert bad["result"] == "failed" and "grad_h_0: not finite" in bad["reason"]
    assert (
        bad["errors"]["grad_h_0"] == [None, 0.0, 1e-12]
        and bad["errors"].keys() == good["errors"].keys()
    )
    assert alive.checked(lambda: None)["reason"] == "nothing was compared"


@pytest.mark.needs("cuda_build")
def test_alive_demands_the_exchange_that_a_case_is_named_after():
    case = alive.Case(8, 16, 512)
    alive.takes(H100, "cluster", False, ("lstm", "float16", case))
    with pytest.raises(AssertionError, match="exchange in a cluster.*, not L2"):
        alive.takes(H100, "L2", False, ("lstm", "float16", case))
    with pytest.raises(AssertionError, match="would not all be resident"):
        alive.takes(H100, "L2", True, ("lstm", "float16", alive.Case(8, 16, 1024)), layers=2)
