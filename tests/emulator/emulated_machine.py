"""The machine of bench/gpu on the emulator: CUDA kernels on tensors of the CPU."""

import contextlib
import sys
import threading
import time

import emulated_ops
import torch
from emulator import ROOT, build

sys.path.insert(0, str(ROOT))

from bench.gpu import libraries  # noqa: E402
from bench.gpu.machine import NO_LIMITS, Machine  # noqa: E402

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
    """The emulator.

    Args:
        schedule: of the measuring kernels; None as in the rehearsal.

    Attributes:
        lost: set by a test that plants a device that cannot be used any more.
    """

    rehearsal = True

    def __init__(self, schedule=None):
        self.device, self.facts, self._limits = torch.device("cpu"), FACTS, NO_LIMITS
        self.schedule, self.lost = schedule, False
        self._kept = contextlib.ExitStack()

    def keep(self, context) -> None:
        """Enter a context for as long as the machine lives."""
        self._kept.enter_context(context)

    def op(self, name):
        return getattr(torch.ops.seqkernels_emulated, name).default

    def _limit_plans(self, max_cluster, max_units, shared_per_block):
        shared = shared_per_block or FACTS["shared_per_block"]
        emulated_ops.ops(max_cluster=max_cluster, max_units=max_units, shared_per_block=shared)

    def library(self, name):
        with compiling():
            if self.schedule is None:
                return super().library(name)
            source = libraries.SOURCES[name]
            built = build([source.path], defines=source.defines)
        return libraries.Library(
            lambda function, arguments: (
                built.run(function, *arguments, schedule=self.schedule).check().code
            )
        )

    def seconds(self, call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def synchronize(self):
        """Nothing is left to wait for."""

    def failure(self):
        return {"spin": None} if self.lost else None
