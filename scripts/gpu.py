"""Everything a GPU has to show, in one command of under nine minutes: `make gpu`.

Builds (or uses a build that is there), then runs in groups, the stages of a group side by side: the
golden tests of the wrappers, parity of every kernel, behaviour among other work, compute-sanitizer
on small cases, all other tests, and last, alone, the quick benchmark suites. A missing GPU counts
as a failure. No stage stops the others, one that hangs is killed with its children, and one for
which no time is left says so. Ends with a short table and exits with 1 unless all went well.

After every stage three files in $OUT (by default build/gpu) are written anew: verification.json,
table.txt, and details.tar.gz with every log, every measured error and the benchmarks' JSON.

Environment:
    SEQKERNELS_REBUILD: 1 compiles even where there is a build.
    SEQKERNELS_COMMIT: the commit, for a copy without its history.

Usage: python scripts/gpu.py [--minutes 8.8] [--only NAME ...] [--list]
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DETAILS = ROOT / "build" / "gpu" / "details"
PYTHON = sys.executable
# Warnings are errors where the project is developed. Here, with any versions, they hide results.
PYTEST = [PYTHON, "-m", "pytest", "-v", "--tb=short", "--require-cuda", "-p", "no:cacheprovider"]
PYTEST += ["-o", "filterwarnings=default", "-o", "faulthandler_timeout=60"]
SUITES = ["cudnn_persistent", "standard", "small_hidden", "variable_length", "layers"]
SUITES += ["inference_latency", "large", "odd_sizes", "cells", "decode"]
# Test files that ask for a package which is not on every machine with a GPU.
OPTIONAL = {"hypothesis": ["tests/nn/test_hypothesis.py"]}
# Run by other stages, or proofs that need no GPU and take minutes.
ELSEWHERE = ["cuda", "emulator", "cpu", "bench", "triton", "decode", "g2p"]
ELSEWHERE += ["test_gpu_script.py"]


@dataclass
class Stage:
    """One command and what became of it."""

    name: str
    command: list[str]
    limit: float  # seconds
    group: str
    environment: dict[str, str] = field(default_factory=dict)
    needs_build: bool = True
    note: str = ""
    result: str = "not run"
    seconds: float = 0.0
    tests: dict[str, int] = field(default_factory=dict)  # passed, failed, ...
    failures: list[str] = field(default_factory=list)  # the first of them
    last: str = ""

    @property
    def file(self) -> str:
        """The stage's name as part of a file's."""
        return re.sub("[ :]+", "-", self.name)


def sanitizer(tool: str, of: str = "", cases: str = "tests/cuda/small_cases.py") -> Stage:
    """compute-sanitizer on small cases: the CUDA kernels', or those of other kernels."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", PYTHON, cases]
    # Small layers cut up, so that they exchange; every tensor an allocation that can be overrun.
    environment = {"SEQKERNELS_MAX_UNITS": "16", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Stage(f"{tool}{of}", command, 100, "sanitizers", environment)


def triton_parts() -> dict[str, str]:
    """Tests of Triton for pytest's -k: a process compiles on one core, about 2 s for a kernel."""
    cells = {"lstm": "lstm", "gru": "gru and not reset_before", "reset before": "reset_before"}
    plans = {
        f"plans of {cell} at {hidden}": f"every_candidate and {chosen} and {hidden}"
        for cell, chosen in cells.items()
        for hidden in (255, 256)
    }
    cells |= {name: name for name in ("rnn_tanh", "rnn_relu")}
    whole = {cell: f"{chosen} and not every_candidate" for cell, chosen in cells.items()}
    return {**whole, **plans, "other": "not (lstm or gru or rnn)"}


def stages(work: Path) -> list[Stage]:
    """All stages but the build, the most telling first."""
    l2, small = {"SEQKERNELS_MAX_CLUSTER": "1"}, {"SEQKERNELS_MAX_UNITS": "16"}
    ops, full = "tests/cuda/test_cuda_ops.py", "tests/cuda/test_full_size.py"
    joined = "tests/cuda/test_cuda_joined.py"
    persistent = [*PYTEST, ops, joined, "-k", "persistent"]
    behaviour = "tests/cuda/test_cuda_behaviour.py"
    triton = ["tests/triton/test_triton_gpu.py", "tests/triton/test_triton_options.py"]
    triton_cases = " of Triton", "tests/triton/sanitized.py"
    wrappers = [*PYTEST, "tests/cuda/test_golden_wrappers.py"]
    bench = [PYTHON, "-m", "bench", "run", *SUITES, "--quick", "--with", "--device", "cuda"]
    bench += ["--output", str(work / "bench"), "--minutes"]
    others = [*PYTEST, "tests", *(f"--ignore=tests/{name}" for name in ELSEWHERE)]
    missing = {p for p in OPTIONAL if importlib.util.find_spec(p) is None}
    left_out = sorted({path for package in missing for path in OPTIONAL[package]})
    note = f"without {', '.join(left_out)}: no {', '.join(sorted(missing))}" if missing else ""
    return [
        Stage("wrappers", wrappers, 150, "build", needs_build=False),
        Stage("parity", [*PYTEST, ops, joined], 150, "parity"),
        Stage("full size", [*PYTEST, full], 150, "parity"),
        Stage("parity through L2", [*persistent, full], 150, "parity", l2),
        Stage("parity in small blocks", persistent, 150, "parity", small),
        *(
            Stage(f"Triton: {name}", [*PYTEST, *triton, "-k", chosen], 150, "parity")
            for name, chosen in triton_parts().items()
        ),
        Stage("layers", [*PYTEST, "tests/cuda/test_cuda_layers.py"], 150, "parity"),
        Stage("behaviour", [*PYTEST, behaviour], 80, "behaviour"),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        sanitizer("synccheck"),
        sanitizer("memcheck", *triton_cases),
        sanitizer("racecheck", *triton_cases),
        Stage("decoding", [*PYTEST, "tests/decode/test_greedy_graph.py"], 100, "sanitizers"),
        Stage(
            "all other tests",
            [*others, *(f"--ignore={path}" for path in left_out)],
            100,
            "sanitizers",
            note=note,
        ),
        Stage("benchmarks", bench, 300, "benchmarks"),
    ]


def build() -> Stage:
    """Compile for the device at hand alone, unless there is a build with kernels for it."""
    code = (
        "import torch; from seqkernels import _C; assert _C.with_cuda\n"
        # Another checkout may be installed in this environment.
        f"assert _C.__file__.startswith({str(ROOT)!r}), _C.__file__\n"
        "if torch.cuda.is_available(): major, minor = torch.cuda.get_device_capability()\n"
        "if torch.cuda.is_available(): assert f'{major}{minor}' in _C.cuda_archs, _C.cuda_archs\n"
    )
    check = [PYTHON, "-c", code]
    there = answer(check) is not None
    if there and os.environ.get("SEQKERNELS_REBUILD") != "1":
        return Stage("build", [], 0, "build", result="ok", last="used the build that is there")
    found = answer(
        [PYTHON, "-c", "import torch; print('%d%d' % torch.cuda.get_device_capability())"]
    )
    arch = {None: "90a", "90": "90a", "100": "100a"}.get(found, found)
    environment = {"SEQKERNELS_CUDA": "1", "SEQKERNELS_CUDA_ARCHS": arch}
    # setup.py also ends well where a tool is missing and nothing was compiled.
    steps = [PYTHON, "setup.py", "build_ext", "--inplace"], check
    command = ["sh", "-c", " && ".join(map(shlex.join, steps))]
    return Stage("build", command, 240, "build", environment, needs_build=False)


def answer(command: list[str]) -> str | None:
    """What a short command prints; None where it fails, hangs or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment_of({})
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment_of(more: dict[str, str]) -> dict[str, str]:
    """This process's environment, the repository first among the imports, and `more`."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # pytest cuts its summary to the width of the terminal that it does not have.
    common = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    return {**os.environ, **common, **more}


def kill(process: subprocess.Popen) -> None:
    """End a stage and its children: a compiler or a test left running would disturb the next."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that a driver holds does not end; nothing more can be done then.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def start(stage: Stage, work: Path, seconds: float) -> subprocess.Popen | None:
    """Start a stage with its output in a log; None where that cannot be."""
    if shutil.which(stage.command[0]) is None:
        stage.result, stage.last = "failed", f"{stage.command[0]} is not installed"
        return None
    command = list(stage.command)
    if command[-1] == "--minutes":  # shared among the suites, less what the last case may take
        command.append(f"{max(0.0, seconds - 20) / 60:.2f}")
    records = {"SEQKERNELS_RECORDS": str(work / f"{stage.file}.records")}
    with (work / f"{stage.file}.log").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment_of({**records, **stage.environment}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(group: list[Stage], work: Path, left: float, ended) -> None:
    """Run the stages of a group side by side, for at most `left` seconds; `ended()` after each."""
    begin = time.monotonic()
    running = {}
    try:
        for stage in group:
            process = start(stage, work, min(stage.limit, left))
            if process is not None:
                running[stage.name] = process
        while running:
            time.sleep(0.05)
            for stage in group:
                process = running.get(stage.name)
                if process is None:
                    continue
                code, stage.seconds = process.poll(), round(time.monotonic() - begin, 1)
                if code is None and stage.seconds < min(stage.limit, left):
                    continue
                stage.result = "timed out" if code is None else "failed" if code else "ok"
                kill(running.pop(stage.name))
                read_log(stage, work)
                ended()
    finally:
        for process in running.values():
            kill(process)


def read_log(stage: Stage, work: Path) -> None:
    """Take the counts, the first failures and the last line from a log."""
    text = (work / f"{stage.file}.log").read_text(errors="replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if re.match(r"(FAILED|ERROR|=+ ERROR SUMMARY)", line)]
    stage.failures = [line[:200] for line in found[:20]] if stage.result != "ok" else []
    stage.last = lines[-1].strip("= ")[:100] if lines else ""
    if "pytest" in stage.command and lines:
        counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", lines[-1])
        stage.tests = {name: int(count) for count, name in counts}


def facts() -> dict:
    """Device, driver, versions and commit; null where unknown."""
    code = (
        "import json, torch; found = {'torch': torch.__version__, 'cuda': torch.version.cuda}\n"
        "if torch.cuda.is_available():\n"
        "    p = torch.cuda.get_device_properties(0)\n"
        "    found |= {'device': p.name, 'processors': p.multi_processor_count}\n"
        "    found |= {'cudnn': torch.backends.cudnn.version()}\n"
        "print(json.dumps(found))\n"
    )
    version = "import triton; print(triton.__version__)"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        **dict.fromkeys(("device", "processors", "torch", "cuda", "cudnn")),
        **json.loads(answer([PYTHON, "-c", code]) or "{}"),
        "triton": answer([PYTHON, "-c", version]),
        "driver": answer(query) or None,
        "python": sys.version.split()[0],
        "commit": os.environ.get("SEQKERNELS_COMMIT") or answer(["git", "rev-parse", "HEAD"]),
        "changed_since": answer(["git", "status", "--porcelain", "--untracked-files=no"]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def parity(done: list[Stage], work: Path, commit: str | None) -> list[dict]:
    """For every kernel, cell and number format of a stage: its comparisons, and the worst."""
    found: dict[tuple, dict] = {}
    for stage in done:
        path = work / f"{stage.file}.records"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a stage that was killed
            if "kernel" not in record:
                continue
            names = ("kernel", "cell", "dtype", "tf32", "direction")
            key = (stage.name, *(record.get(name) for name in names))
            entry = found.setdefault(
                key,
                {
                    "stage": stage.name,
                    **{name: record.get(name) for name in names},
                    **{"comparisons": 0, "failed": 0, "commit": commit, "share": -1.0},
                },
            )
            error, limit = record["error"], record["limit"]
            entry["comparisons"] += 1
            entry["failed"] += error is None or error > limit
            # Of the bound; what was not finite is worse than all that was.
            share = 1e9 if error is None else error / limit
            if share > entry["share"]:
                worst = ("error", "torch_error", "limit", "quantity", "case")
                entry |= {"share": share, **{name: record.get(name) for name in worst}}
    return [{k: v for k, v in entry.items() if k != "share"} for entry in found.values()]


def table(known: dict, done: list[Stage], entries: list[dict]) -> str:
    """The short table."""
    lines = [
        f"{known['device'] or 'no GPU'}, torch {known['torch']}, Python {known['python']}, "
        f"commit {known['commit'] or 'unknown'}{', changed since' * bool(known['changed_since'])}"
    ]
    for stage in done:
        counts = ", ".join(f"{count} {name}" for name, count in stage.tests.items())
        text = "; ".join(filter(None, (counts or stage.last, stage.note)))
        lines.append(f"{stage.name:22} {stage.result:10} {stage.seconds:6.1f} s  {text}")
        lines += [f"{'':24}{failure}" for failure in stage.failures[:3]]
    failed = sum(entry["failed"] for entry in entries)
    compared = sum(entry["comparisons"] for entry in entries)
    lines.append(f"{compared} comparisons with float64, {failed} beyond the tolerance")
    return "\n".join(lines)


def replace(path: Path, write) -> None:
    """Write a file beside its place, then move it there: a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def save(out: Path, work: Path, known: dict, done: list[Stage]) -> str:
    """Write the three files of $OUT; returns the table."""
    entries = parity(done, work, known["commit"])
    stages = [asdict(stage) for stage in done]
    report = {**known, "ok": all_well(done), "stages": stages, "parity": entries}
    text = table(known, done, entries)
    # A published result names no folder of the machine it comes from.
    content = json.dumps(report, indent=1).replace(PYTHON, "python").replace(str(ROOT), ".")

    def pack(path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(work, arcname="details")

    replace(out / "verification.json", lambda p: p.write_text(content + "\n"))
    replace(out / "table.txt", lambda p: p.write_text(text + "\n"))
    replace(out / "details.tar.gz", pack)
    return text


def all_well(done: list[Stage]) -> bool:
    """Every stage ran and succeeded."""
    return all(stage.result == "ok" for stage in done)


def main(arguments: list[str] | None = None) -> int:
    """Run the stages, print the table, return the exit status."""
    begin = time.monotonic()
    work = DETAILS
    planned = stages(work)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.8, help="for everything together")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="stages to run after the build")
    parser.add_argument("--list", action="store_true", help="print the names of the stages")
    options = parser.parse_args(arguments)
    names = [stage.name for stage in planned]
    if unknown := [name for name in options.only or () if name not in names]:
        parser.error(f"unknown stage {unknown[0]!r}; stages: {', '.join(names)}")
    if options.list:
        print("\n".join(names))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    known, first = facts(), build()
    done = [first, *(s for s in planned if not options.only or s.name in options.only)]
    text = save(out, work, known, done)
    for group in dict.fromkeys(stage.group for stage in done):
        left = begin + options.minutes * 60 - time.monotonic()
        ready = []
        for stage in (s for s in done if s.group == group and s.result == "not run"):
            if stage.needs_build and first.result != "ok":
                stage.last = "there is no build"
            elif left < 10:
                stage.last = "no time was left"
            else:
                ready.append(stage)
        run(ready, work, left, lambda: save(out, work, known, done))
        text = save(out, work, known, done)
        print(f"{group}: {', '.join(f'{s.name} {s.result}' for s in ready)}", flush=True)
    print(text)
    return int(not all_well(done))


if __name__ == "__main__":
    sys.exit(main())
