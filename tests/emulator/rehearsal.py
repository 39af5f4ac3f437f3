"""The GPU campaign's machine without a GPU: the CUDA kernels run on the emulator.

bench/gpu/worker.py loads this file under `--rehearse`. SEQKERNELS_FAULTS plants faults for tests of
the supervisor: JSON, {stage: {case: "hang" | "crash" | "lose"}}.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "triton")]

import interpreter  # noqa: E402, isort: skip  (before anything that imports Triton)
import emulated_backend  # noqa: E402
import emulated_ops  # noqa: E402
import sanitized  # noqa: E402
import torch  # noqa: E402

from bench.gpu.machine import NO_LIMITS, Machine  # noqa: E402
from seqkernels import dispatch  # noqa: E402

# What plans are made for: an H100.
FACTS = {"major": 9, "minor": 0, "processors": 132, "shared_per_block": 227 << 10}
FACTS |= {"image": 90, "max_units": 256, "max_cluster": 16, "clusters": [66, 32, 15, 7]}


@contextlib.contextmanager
def compiling():
    """Signs of life: what is not cached takes the compiler minutes."""
    done = threading.Event()

    def tell():
        while not done.wait(2):
            print("compiling for the emulator", flush=True)

    teller = threading.Thread(target=tell)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


class EmulatedMachine(Machine):
    """The emulator, on tensors of the CPU."""

    rehearsal = True

    def __init__(self):
        self.device, self.facts, self._limits = torch.device("cpu"), FACTS, NO_LIMITS
        self.lost = False
        with compiling():
            emulated_ops.library()
        self._backend = emulated_backend.persistent_on_the_cpu()
        self._backend.__enter__()  # for as long as the machine lives
        self._limit_plans(**NO_LIMITS)

    def op(self, name):
        return getattr(torch.ops.seqkernels_emulated, name).default

    def _limit_plans(self, max_cluster, max_units, shared_per_block):
        shared = shared_per_block or FACTS["shared_per_block"]
        emulated_ops.ops(max_cluster=max_cluster, max_units=max_units, shared_per_block=shared)

    def library(self, name):
        with compiling():
            return super().library(name)

    def seconds(self, call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def synchronize(self):
        """Nothing is left to wait for."""

    def failure(self):
        return {"spin": None} if self.lost else None


def machine() -> Machine:
    """The machine; whole layers on CPU tensors are dispatched to its kernels from here on."""
    found = EmulatedMachine()
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
            yield name, interpreter.programs_at_once()(check) if "cooperative" in name else check

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
