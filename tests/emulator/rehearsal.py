"""The GPU campaign's machine without a GPU: the CUDA kernels run on the emulator.

bench/gpu/worker.py loads this file under `--rehearse`. SEQKERNELS_FAULTS plants faults for tests of
the supervisor: JSON, {stage: {case: "hang" | "crash" | "lose"}}.
"""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "triton")]

import interpreter  # noqa: E402, isort: skip  (before anything that imports Triton)
import emulated_backend  # noqa: E402
import emulated_ops  # noqa: E402
import sanitized  # noqa: E402
from emulated_machine import EmulatedMachine, compiling  # noqa: E402

from bench.gpu.machine import Machine  # noqa: E402
from seqkernels import dispatch  # noqa: E402


def machine() -> Machine:
    """The machine; whole layers on CPU tensors are dispatched to its kernels from here on."""
    with compiling():
        emulated_ops.library()
    found = EmulatedMachine()
    found.keep(emulated_backend.persistent_on_the_cpu())
    # On a CPU, the ops of the stepwise schedule's names are the native ones.
    can_run = dispatch.named("native").can_run
    stepwise = dispatch.named("stepwise")
    stepwise = dataclasses.replace(stepwise, devices=("cpu",), can_run=can_run)
    dispatch.BACKENDS = tuple(stepwise if b.name == "stepwise" else b for b in dispatch.BACKENDS)
    dispatch._BY_NAME["stepwise"] = stepwise
    sanitized.checks = _at_once(sanitized.checks)
    for stage, faults in json.loads(os.environ.get("SEQKERNELS_FAULTS", "{}")).items():
        module = importlib.import_module(f"bench.gpu.{stage}")
        module.cases = _faulty(module.cases, faults)
    return found


def _at_once(checks):
    """Programs that wait for each other run at the same time, each in a process."""

    def wrapped(device):
        for name, check in checks(device):
            yield name, interpreter.programs_at_once()(check) if "persistent" in name else check

    return wrapped


def _faulty(cases, faults):
    def hang():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
        time.sleep(600)

    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    def wrapped(on):
        def lose():
            on.lost = True
            raise RuntimeError("CUDA error: unspecified launch failure")

        planted = {"hang": hang, "crash": crash, "lose": lose}
        for name, measure in cases(on):
            yield name, planted[faults[name]] if name in faults else measure

    return wrapped
