"""scripts/gpu.py on planted stages: it always ends, and always leaves whole results."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import calls
from bench.gpu.calls import Stage
from bench.gpu.protocol import append, records

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu.py"
WORKER = ROOT / "tests" / "planted_worker.py"
PYTHON = sys.executable


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The script as a module, with planted workers and a folder of this test for its files."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(module, "WORKER", [PYTHON, str(WORKER)])
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def plant(gpu, monkeypatch, cases, *commands, seconds=10):
    """A call of these stages, {name: {case: outcome}}, and of the commands after them."""
    builds = ("spin", "release")
    planned = [Stage(name, seconds, builds[i > 0]) for i, name in enumerate(cases)]
    monkeypatch.setenv("PLANTED", json.dumps(cases))
    monkeypatch.setattr(gpu, "stages", lambda call, rehearse: [*planned, *commands])


def command(name, code, *arguments, **options):
    return Stage(name, 10, "", (PYTHON, "-c", code, *arguments), **options)


def results(path):
    """What became of the cases of a file, by name; the last word counts."""
    return {record["case"]: record["result"] for record in records(path)}


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def children(folder: Path) -> list[int]:
    """What cases that hang have started."""
    path = folder / "children"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not running(pid)


def test_all_well_is_zero(gpu, tmp_path, monkeypatch):
    code = "import os, sys; os.mkdir(sys.argv[1] + '/a'); open(sys.argv[1] + '/a/b.json', 'w')"
    report = command("report", code, "{scratch}")
    plant(gpu, monkeypatch, {"one": {"a": "ok", "b": "ok"}, "two": {"x": "ok"}}, report)
    assert gpu.main(["first"]) == 0
    out = tmp_path / "out"
    assert results(out / "stages.jsonl") == {"one": "ok", "two": "ok", "report": "ok"}
    assert results(out / "one.jsonl") == {"a": "ok", "b": "ok"}
    assert records(out / "two.jsonl")[0]["value"] == 1
    assert sorted(p.name for p in out.iterdir()) == [
        "b.json",
        "one.jsonl",
        "stages.jsonl",
        "two.jsonl",
    ]


def test_a_worker_goes_on_after_the_case_that_ended_it(gpu, tmp_path, monkeypatch, capsys):
    cases = {"a": "ok", "b": "hang", "c": "ok", "d": "crash", "e": "lose", "f": "wrong", "g": "nan"}
    plant(gpu, monkeypatch, {"one": {**cases, "h": "ok"}, "two": {"x": "ok"}})
    assert gpu.main(["first", "--silence", "1"]) == 1
    found = {record["case"]: record for record in records(tmp_path / "out" / "one.jsonl")}
    assert list(found) == list("abcdefgh")
    assert [r["result"] for r in found.values()] == (
        ["ok", "hung", "ok", "crashed", "failed", "failed", "failed", "ok"]
    )
    assert found["d"]["reason"] == f"the worker ended with status -{signal.SIGSEGV.value}"
    assert found["e"]["spin"] == [{"wait": "words", "block": 7}]
    assert "lost" not in found["f"] and found["f"]["reason"] == "AssertionError: error 1 above 0.5"
    assert found["g"]["reason"].startswith("ValueError")
    assert gone(*children(tmp_path))
    one, two = records(tmp_path / "out" / "stages.jsonl")
    assert (one["result"], two["result"]) == ("failed", "ok")
    assert one["cases"] == {"ok": 3, "hung": 1, "crashed": 1, "failed": 3}
    assert "about to crash" in one["output"] and "error 1 above 0.5" in one["output"]
    printed = capsys.readouterr().out
    assert "  b: hung, the worker was silent" in printed and "  f: failed, Assertion" in printed


def test_a_stage_that_ends_every_worker_is_given_up(gpu, tmp_path, monkeypatch):
    cases = {f"case {i}": "crash" for i in range(9)}
    plant(gpu, monkeypatch, {"one": {"a": "ok"}, "two": cases, "three": {"x": "ok"}})
    assert gpu.main(["first"]) == 1
    one, two, three = records(tmp_path / "out" / "stages.jsonl")
    assert (one["result"], two["result"], three["result"]) == ("ok", "failed", "ok")
    assert two["reason"] == "too many restarts" and two["cases"] == {"crashed": gpu.RESTARTS + 1}


@pytest.mark.parametrize("planted", ["wrong", "hang"])
def test_a_stage_without_cases_stops_no_other(gpu, tmp_path, monkeypatch, planted):
    plant(gpu, monkeypatch, {"one": {"": planted, "a": "ok"}, "two": {"x": "ok"}})
    # Of one worker.
    monkeypatch.setattr(
        gpu, "stages", lambda *_: [Stage("one", 9, "spin"), Stage("two", 9, "spin")]
    )
    assert gpu.main(["first", "--silence", "1"]) == 1
    one, two = records(tmp_path / "out" / "stages.jsonl")
    assert (one["result"], two["result"]) == ("failed", "ok")
    reason = "AssertionError: error 1 above 0.5" if planted == "wrong" else "was silent between"
    assert reason in one["reason"]
    assert len(children(tmp_path)) == (planted == "hang")  # it was tried once


def test_a_stage_keeps_to_its_share_of_the_time(gpu, tmp_path, monkeypatch):
    slow = {f"case {i}": 0.5 for i in range(40)}
    plant(gpu, monkeypatch, {"one": slow, "two": {"x": "ok"}})
    start = time.monotonic()
    assert gpu.main(["first", "--minutes", "0.1"]) == 1
    assert time.monotonic() - start < 6
    one, two = records(tmp_path / "out" / "stages.jsonl")
    assert (one["result"], two["result"]) == ("out of time", "ok")
    done = list(results(tmp_path / "out" / "one.jsonl"))
    assert 2 <= len(done) <= 7 and one["left_out"] == list(slow)[len(done) :]


def test_time_that_is_not_needed_passes_on(gpu, monkeypatch, tmp_path):
    plant(gpu, monkeypatch, {"one": {}, "two": {}, "three": {}})
    options = gpu.argparse.Namespace(minutes=1)
    call = gpu.Call(options, gpu.stages("first", False), tmp_path)
    assert call.share("one") == pytest.approx(20, abs=1)
    del call.to_come["one"]
    assert call.share("two") == pytest.approx(30, abs=1)
    call.to_come["two"] = 30
    assert call.share("three") == pytest.approx(15, abs=1)


def test_the_deadline_ends_a_case_and_a_command(gpu, tmp_path, monkeypatch):
    plant(gpu, monkeypatch, {"one": {"a": "ok", "b": "hang"}, "two": {"x": "ok"}})
    start = time.monotonic()
    assert gpu.main(["first", "--minutes", "0.05", "--silence", "100"]) == 1
    assert time.monotonic() - start < 10
    out = tmp_path / "out"
    assert results(out / "stages.jsonl") == {"one": "out of time", "two": "out of time"}
    assert results(out / "one.jsonl") == {"a": "ok"}  # b is for a resumed call
    assert gone(*children(tmp_path))
    plant(
        gpu, monkeypatch, {}, command("slow", "import time; print(1, flush=True); time.sleep(99)")
    )
    assert gpu.main(["first", "--minutes", "0.03"]) == 1
    assert results(out / "stages.jsonl") == {"slow": "out of time"}


def test_a_build_that_does_not_import_is_made_once(gpu, tmp_path, monkeypatch):
    plant(gpu, monkeypatch, {"one": {"a": "ok"}, "two": {"x": "ok"}})
    unusable = tmp_path / "unusable"
    unusable.write_text(str(gpu.protocol.NO_BUILD))
    code = f"import os; print('compiling'); os.remove({str(unusable)!r})"
    monkeypatch.setattr(gpu, "BUILD", [PYTHON, "-c", code])
    assert gpu.main(["first"]) == 0
    assert results(tmp_path / "out" / "stages.jsonl") == {"build": "ok", "one": "ok", "two": "ok"}
    unusable.write_text(str(gpu.protocol.NO_BUILD))
    count = (
        f"print('no nvcc'); open({str(tmp_path / 'count')!r}, 'a').write('x'); raise SystemExit(1)"
    )
    monkeypatch.setattr(gpu, "BUILD", [PYTHON, "-c", count])
    assert gpu.main(["first"]) == 1
    build, one, two = records(tmp_path / "out" / "stages.jsonl")
    assert build["result"] == one["result"] == two["result"] == "failed"
    assert build["output"] == "no nvcc\n" and one["reason"] == "nothing to run on"
    assert (tmp_path / "count").read_text() == "x"


def test_without_a_gpu_every_stage_fails_and_nothing_is_built(gpu, tmp_path, monkeypatch):
    plant(gpu, monkeypatch, {"one": {"a": "ok"}, "two": {"x": "ok"}}, command("free", "print(1)"))
    (tmp_path / "unusable").write_text(str(gpu.protocol.NO_GPU))
    assert gpu.main(["first"]) == 1
    stages = tmp_path / "out" / "stages.jsonl"
    assert results(stages) == {"one": "failed", "two": "failed", "free": "ok"}


def test_commands(gpu, tmp_path, monkeypatch, capsys):
    """One that fails, hangs, is missing or leaves too much stops no other."""
    hangs = "import time; print('begun', flush=True); time.sleep(99)"
    large = f"import sys; open(sys.argv[1] + '/x', 'wb').truncate({gpu.LARGEST_FILE + 1})"
    plant(
        gpu,
        monkeypatch,
        {},
        command("fails", "print('== 1 failed, 3 passed ==='); raise SystemExit(1)", note="alone"),
        Stage("missing", 10, "", ("no-such-tool",)),
        command("hangs", hangs, silence=1),
        command("large", large, "{scratch}"),
        command("empty", "print('nothing to report')", "{scratch}"),
        command("last", "import os; print(os.environ['PLACE'])", environment={"PLACE": "{out}"}),
    )
    assert gpu.main(["second"]) == 1
    found = {record["case"]: record for record in records(tmp_path / "out" / "stages.jsonl")}
    expected = ["failed", "failed", "hung", "ok", "failed", "ok"]
    assert [record["result"] for record in found.values()] == expected
    assert found["fails"]["last"] == "1 failed, 3 passed" and found["fails"]["note"] == "alone"
    assert found["missing"]["reason"] == "no-such-tool is not installed"
    assert found["hangs"]["output"] == "begun\n" and found["large"]["large"] == ["x"]
    assert found["empty"]["reason"] == "it left no file"
    assert found["last"]["output"] == f"{tmp_path / 'out'}\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stages.jsonl"]
    assert "fails            failed" in capsys.readouterr().out


def test_only_some(gpu, tmp_path, monkeypatch, capsys):
    plant(
        gpu,
        monkeypatch,
        {"one": {"a": "wrong"}, "two": {"x": "wrong", "y": "ok"}},
        command("c", ""),
    )
    assert gpu.main(["first", "--only", "two:y"]) == 0
    assert results(tmp_path / "out" / "stages.jsonl") == {"two:y": "ok"}
    assert results(tmp_path / "out" / "two.jsonl") == {"y": "ok"}
    for wrong, message in {
        "three": "unknown stage 'three'; stages of first: one, two, c",
        "c:x": "c runs whole",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            gpu.main(["first", "--only", wrong])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert gpu.main(["first", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["one", "10", "s", "two", "10", "s", "c", "10", "s"]
    with pytest.raises(SystemExit):
        gpu.main(["publish"])
    assert "takes a folder" in capsys.readouterr().err


def test_a_call_is_resumed_or_begun_anew(gpu, tmp_path, monkeypatch):
    out, mark = tmp_path / "out", tmp_path / "mark"
    counted = command("counted", f"open({str(mark)!r}, 'a').write('x')")
    once = {"one": {"a": "ok", "b": "crash"}, "two": {"x": "ok"}}
    plant(gpu, monkeypatch, once, counted)
    assert gpu.main(["first"]) == 1
    plant(gpu, monkeypatch, {**once, "one": {"a": "wrong", "b": "ok", "c": "ok"}}, counted)
    assert gpu.main(["first", "--resume"]) == 1  # b is known to crash
    assert results(out / "one.jsonl") == {"a": "ok", "b": "crashed", "c": "ok"}
    assert len(records(out / "two.jsonl")) == 1 and mark.read_text() == "x"
    assert gpu.main(["first"]) == 1
    assert results(out / "one.jsonl") == {"a": "failed", "b": "ok", "c": "ok"}
    assert mark.read_text() == "xx"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    monkeypatch.setenv("OUT", str(other))
    with pytest.raises(SystemExit, match="something else"):
        gpu.main(["first"])
    assert (other / "thesis.tex").read_text() == "years of work"


def test_half_a_line_is_no_record(tmp_path):
    path = tmp_path / "x.jsonl"
    append(path, {"case": "a"})
    with path.open("a") as file:
        file.write('{"case": "b", "res')
    assert records(path) == [{"case": "a"}] and records(tmp_path / "none") == []
    with pytest.raises(ValueError):
        append(path, {"case": "c", "value": float("inf")})


def test_a_stop_from_outside(tmp_path):
    """Results are there, and nothing runs on."""
    driver = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('gpu_script', {str(SCRIPT)!r})\n"
        "gpu = sys.modules['gpu_script'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(gpu)\n"
        f"gpu.WORKER = [sys.executable, {str(WORKER)!r}]\n"
        "gpu.stages = lambda *_: [gpu.Stage('one', 9, 'spin'), gpu.Stage('two', 9, 'spin')]\n"
        "sys.exit(gpu.main(['first', '--silence', '100']))\n"
    )
    planted = json.dumps({"one": {"a": "ok", "b": "hang"}, "two": {"x": "ok"}})
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PLANTED": planted}
    process = subprocess.Popen([PYTHON, "-c", driver], env=environment)
    deadline = time.monotonic() + 60
    while not children(tmp_path):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert gone(*children(tmp_path))
    assert results(tmp_path / "out" / "one.jsonl") == {"a": "ok"}
    assert results(tmp_path / "out" / "stages.jsonl") == {"one": "stopped", "two": "stopped"}


def test_every_call_names_what_exists():
    known = [stage for call in calls.CALLS for stage in calls.stages(call)]
    paths = {word for stage in known for word in stage.command if word.startswith("tests/")}
    assert len(paths) == 11 and all((ROOT / path).exists() for path in paths)
    # Every file with a test for a GPU is run by a stage that names it.
    listed = subprocess.run(
        ["grep", "-rl", "require_cuda(", "tests", "--include=test_*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.split()) - paths == {"tests/test_gpu_script.py"}
    for call in calls.CALLS:
        planned = calls.stages(call)
        assert len({stage.name for stage in planned}) == len(planned)
        assert sum(stage.seconds for stage in planned) < 200
        assert planned[0].name == "facts"


def test_plug_ins_of_pytest_are_used_where_they_are(monkeypatch):
    monkeypatch.setattr(calls.importlib.util, "find_spec", lambda name: name)
    stage = calls.tests("parity", 60, "tests/a.py")
    chosen = "--timeout 30 --timeout-method thread -n 3 --dist worksteal"
    assert " ".join(stage.command).endswith(chosen)
    assert not stage.note
    monkeypatch.setattr(calls.importlib.util, "find_spec", lambda name: None)
    stage = calls.tests("parity", 60, "tests/a.py")
    assert stage.note == "without pytest_timeout and xdist: not installed"
    assert "-n" not in stage.command and "--timeout" not in stage.command


def test_the_supervisor_imports_no_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['gpu.py', 'first', '--list']\n"
        "try: runpy.run_path('scripts/gpu.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'bench.gpu.calls' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
