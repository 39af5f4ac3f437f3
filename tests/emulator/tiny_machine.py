"""Where the measuring stages run in their tests: the emulator, at tiny sizes."""

import contextlib
import sys
import time

import torch
from emulator import ROOT, build

sys.path.insert(0, str(ROOT))

from bench.gpu import libraries  # noqa: E402


class TinyMachine:
    """What bench/gpu/micro.py and where.py ask of a machine.

    Args:
        schedule: of the emulator; None as in the rehearsal.
    """

    device, rehearsal = torch.device("cpu"), True
    # What plans are made for: an H100.
    facts = {"processors": 132, "shared_per_block": 227 << 10, "max_units": 256}
    facts |= {"max_cluster": 16, "clusters": [66, 32, 15, 7]}

    def __init__(self, schedule=None):
        self.schedule = schedule

    def full_or_tiny(self, full, tiny):
        return tiny

    def library(self, name):
        if self.schedule is None:
            return libraries.load(name, rehearsal=True)
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

    def op(self, name):
        return getattr(torch.ops.seqkernels_emulated, name).default

    @contextlib.contextmanager
    def limits(self, **limits):
        from emulated_ops import ops

        ops(**limits)
        yield
        ops()
