"""Everything a GPU has to show, in one command of under nine minutes: `make gpu`.

Builds (or uses a build that is there), runs every test that needs a GPU with a missing GPU counted
as a failure, compute-sanitizer on small cases, and the quick benchmark suites. No stage stops the
others; a stage for which no time is left is reported as such. Ends with a short table and exits
with 1 if a stage failed. Results go to $OUT, by default build/gpu: verification.json, a log for
each stage, and the benchmarks' JSON.

Usage: python scripts/gpu.py [--minutes 9] [--only NAME ...]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "--require-cuda", "-p", "no:cacheprovider"]


@dataclass
class Stage:
    """One command and what became of it."""

    name: str
    command: list[str]
    limit: int  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    result: str = "not run"
    seconds: float = 0.0
    last: str = ""


def sanitizer(tool: str) -> Stage:
    """compute-sanitizer on the small cases."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", PYTHON]
    # Small layers cut up, so that they exchange.
    return Stage(tool, [*command, "tests/cuda/small_cases.py"], 60, {"SEQKERNELS_MAX_UNITS": "16"})


def stages(out: Path) -> list[Stage]:
    """All stages, the most telling first."""
    l2, small = {"SEQKERNELS_MAX_CLUSTER": "1"}, {"SEQKERNELS_MAX_UNITS": "16"}
    ops = [*PYTEST, "tests/cuda/test_cuda_ops.py", "tests/cuda/test_cuda_joined.py"]
    bench = [PYTHON, "-m", "bench", "run", "--quick", "--output", str(out / "bench")]
    return [
        Stage("wrappers", [*PYTEST, "tests/cuda/test_golden_wrappers.py"], 60),
        Stage("ops", ops, 150),
        Stage("ops through L2", [*ops, "-k", "persistent"], 90, l2),
        Stage("ops in small blocks", [*ops, "-k", "persistent and not full"], 60, small),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        sanitizer("synccheck"),
        Stage("all other tests", [*PYTEST, "tests", *ignored()], 120),
        Stage("benchmarks", [*bench, "cudnn_persistent", "standard", "small_hidden"], 120),
    ]


def ignored() -> list[str]:
    """Tests that have nothing to do with a GPU, or have been run by then."""
    paths = ("tests/emulator", "tests/cuda", "tests/cpu", "tests/bench", "tests/g2p")
    return [f"--ignore={path}" for path in paths]


def build(out: Path) -> Stage:
    """Compile for the device at hand alone, unless there is a build with CUDA kernels."""
    check = "import torch; from seqkernels import _C; assert _C.with_cuda"
    done = subprocess.run([PYTHON, "-c", check], cwd=ROOT, capture_output=True)
    if done.returncode == 0 and os.environ.get("SEQKERNELS_REBUILD") != "1":
        return Stage("build", [], 0, result="ok", last="used the build that is there")
    arch = "90a"
    probe = "import torch; print('%d%d' % torch.cuda.get_device_capability())"
    found = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True)
    if found.returncode == 0:
        arch = {"90": "90a", "100": "100a"}.get(found.stdout.strip(), found.stdout.strip())
    environment = {"SEQKERNELS_CUDA": "1", "SEQKERNELS_CUDA_ARCHS": arch}
    stage = Stage("build", [PYTHON, "setup.py", "build_ext", "--inplace"], 200, environment)
    run(stage, out, stage.limit)
    return stage


def run(stage: Stage, out: Path, seconds: float) -> None:
    """Run a stage; its output goes to a log in `out`."""
    log = out / f"{stage.name.replace(' ', '-')}.log"
    if shutil.which(stage.command[0]) is None:
        stage.result, stage.last = "failed", f"{stage.command[0]} is not installed"
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **stage.environment}
    start = time.monotonic()
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stage.result = "ok" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            # Its children too: a compiler or a test left running would disturb the next stage.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            stage.result = "timed out"
    stage.seconds = round(time.monotonic() - start, 1)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    stage.last = lines[-1][:100] if lines else ""


def facts() -> dict:
    """Device, driver, versions and commit."""
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps({"
        "'device': p.name, 'processors': p.multi_processor_count, 'torch': torch.__version__,"
        "'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}))"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    found = json.loads(done.stdout) if done.returncode == 0 else {"device": None}
    for key, command in {
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "commit": ["git", "rev-parse", "HEAD"],
    }.items():
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            found[key] = done.stdout.strip() or None
        except FileNotFoundError:
            found[key] = None
    return found


def main() -> int:
    """Run the stages, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.8, help="for everything together")
    parser.add_argument("--only", nargs="*", default=[], help="names of stages; the build is kept")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    out = Path(os.environ.get("OUT", ROOT / "build" / "gpu"))
    out.mkdir(parents=True, exist_ok=True)
    known = facts()
    done = [build(out)]
    for stage in stages(out):
        if options.only and stage.name not in options.only:
            continue
        left = deadline - time.monotonic()
        if done[0].result != "ok":
            stage.last = "there is no build"
        elif left < 10:
            stage.last = "no time was left"
        else:
            run(stage, out, min(stage.limit, left))
        done.append(stage)
        report = {**known, "stages": [asdict(s) for s in done]}
        (out / "verification.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"{known.get('device') or 'no GPU'}, torch {known.get('torch')}, {known.get('commit')}")
    for stage in done:
        print(f"{stage.name:16} {stage.result:10} {stage.seconds:6.1f} s  {stage.last}")
    return int(any(stage.result != "ok" for stage in done))


if __name__ == "__main__":
    sys.exit(main())
