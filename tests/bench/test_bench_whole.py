"""The whole way: command line, a user's own model, and pytest-benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import results
from bench.__main__ import main
from bench.cases import SUITES, Case, Suite
from bench.contestants import BASELINE, OURS

ROOT = Path(__file__).parents[2]
TINY = Case("gru", 4, 3, 5, 6)


@pytest.fixture
def tiny(monkeypatch):
    suite = Suite("tiny", "Small enough for a test of the whole way.", (TINY,))
    monkeypatch.setitem(SUITES, "tiny", suite)
    return suite


def test_run_from_the_command_line(tiny, tmp_path, capsys):
    assert main(["run", "tiny", "--quick", "--device", "cpu", "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    (path,) = tmp_path.rglob("*.json")
    document = results.read(path)
    assert [(r["case"]["id"], r["mode"]) for r in document["results"]] == [
        (TINY.id, "inference"),
        (TINY.id, "training"),
    ]
    assert document["settings"]["quick"] and document["versions"]["torch"] == torch.__version__
    for result in document["results"]:
        rows = {row["name"]: row for row in result["contestants"]}
        for name in (BASELINE, OURS, f"{OURS}.native"):
            assert rows[name]["refused"] is None, rows[name]["refused"]
            assert 0 < rows[name]["time_s"]["p20"] <= rows[name]["time_s"]["p80"]
            assert max(rows[name]["error"].values()) < 1e-5
        assert rows[OURS]["detail"] == "native"
        assert "oneDNN is used for LSTM alone" in rows[f"{OURS}.onednn"]["refused"]
    assert "| GRU | 4, 3, 5, 6 |" in out and "1/2" in err


@pytest.mark.exhaustive
def test_model_of_a_user(capsys):
    arguments = "model --layer lstm --input-size 5 --hidden-size 6 --batch 3 --length 4 --quick"
    assert main([*arguments.split(), "--device", "cpu", "--rows", "packed"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("lstm-T4-N3-I5-H6-packed-float32 on cpu")
    assert out.count(f"{OURS}.native") == 2 and "native: " in out.splitlines()[-1]


@pytest.mark.exhaustive
def test_pytest_benchmark_reports_the_interleaved_samples(tmp_path, monkeypatch):
    # In a worker of xdist pytest-benchmark measures nothing.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    path = tmp_path / "out.json"
    only = "lstm-T50-N1-I64-H64"
    command = (
        "-m pytest bench -q -p no:cacheprovider --quick --suite inference_latency"
        f" --only {only} --with="
    )
    done = subprocess.run(
        [sys.executable, *command.split(), f"--benchmark-json={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    found = json.loads(path.read_text())["benchmarks"]
    names = [b["params"]["contestant"] for b in found]
    assert names == [BASELINE, OURS, f"{OURS}.native", f"{OURS}.onednn"]
    for benchmark in found:
        assert benchmark["group"] == f"inference_latency: {only}-float32 inference"
        assert benchmark["stats"]["rounds"] >= 1 and benchmark["stats"]["median"] > 0
        assert max(benchmark["extra_info"]["error"].values()) < 1e-5
