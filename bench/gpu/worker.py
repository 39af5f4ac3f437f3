"""Runs measuring stages, one after another, in a process that imports torch once.

python -m bench.gpu.worker --out DIR --build spin|release [--rehearse]
                           [--seconds STAGE=N] ... STAGE[:TEXT] ...

A stage is a module of this package with FILE, what it writes in DIR, and `cases(machine)`, which
gives the name and the measurement of every case, the most telling first. STAGE:TEXT takes those
cases alone whose name contains TEXT. A line of JSON on stdout precedes and follows every case; each
is recorded in FILE before the next begins, and cases that FILE holds are left out, so that a worker
started again goes on. A stage begins no case after its seconds, counted from the end of the stage
before; it says what it left out.

Exit statuses: see protocol.py.
"""

import argparse
import gc
import importlib.util
import json
import os
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import manifest, protocol

if TYPE_CHECKING:
    from .machine import Machine

SPIN = Path("build", "gpu", "spin", "seqkernels")
REHEARSAL = Path("tests", "emulator", "rehearsal.py")


class Unusable(Exception):
    """There is nothing to run on; the exit status says what is missing."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def say(**message) -> None:
    """Tell the supervisor."""
    print(json.dumps(message), flush=True)


def load(build: str) -> None:
    """Import seqkernels with the carried build.

    Args:
        build: "release", or "spin", whose loops give up waiting after a bounded number of polls.

    Raises:
        Unusable: the build is of other sources or another Python, or does not import.
    """
    import torch  # noqa: F401  (its libraries must be loaded before the extension's)

    reason = manifest.refusal()
    if reason is None and build == "spin":
        path = manifest.ROOT / SPIN / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        try:
            spec = importlib.util.spec_from_file_location("seqkernels._C", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules["seqkernels._C"] = module
        except ImportError as error:
            reason = str(error)
    if reason is None:
        from seqkernels import _extension

        reason = _extension.REASON
        if reason is None and bool(_extension.C.spin_limit) != (build == "spin"):
            reason = f"the {build} build has a spin limit of {_extension.C.spin_limit}"
    if reason is not None:
        raise Unusable(protocol.NO_BUILD, f"no {build} build: {reason}")


def open_machine(build: str, rehearse: bool) -> "Machine":
    """The device and its kernels, ready to run.

    Raises:
        Unusable: there is no GPU that the kernels run on, or no build for them.
    """
    if rehearse:
        spec = importlib.util.spec_from_file_location("rehearsal", manifest.ROOT / REHEARSAL)
        rehearsal = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rehearsal)
        return rehearsal.machine()
    import torch

    if not torch.cuda.is_available():
        raise Unusable(protocol.NO_GPU, "there is no GPU")
    load(build)
    from seqkernels import _extension

    reason = _extension.C.device_refusal()
    if reason is not None:
        raise Unusable(protocol.NO_GPU, reason)
    torch.zeros(1, device="cuda")  # makes the context, which takes seconds
    from .machine import Machine

    return Machine()


def measured(measure: Callable[[], dict], machine: "Machine") -> dict:
    """The record of a case without its name; with "lost" where the device can no longer be used."""
    start = time.perf_counter()
    try:
        record = {"result": "ok", **measure()}
        machine.synchronize()
        json.dumps(record, allow_nan=False)
    # A wrong result, a refusal and a dead device arrive as exceptions of any type.
    except Exception as error:
        traceback.print_exc()
        record = {"result": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
        failure = machine.failure()
        if failure is not None:
            record |= {"lost": True, **failure}
    return {**record, "wall_s": round(time.perf_counter() - start, 3)}


def run(stage: str, machine: "Machine", out: Path, end: float) -> None:
    """Run the cases of a stage that are not recorded yet.

    Args:
        stage: its name, and after a colon what the names of its cases must contain.
        machine: where.
        out: folder of its file.
        end: of `time.monotonic()`, after which no case begins.
    """
    name, _, text = stage.partition(":")
    say(begin=stage)
    left_out, file, reason = [], "", ""
    try:
        module = import_module(f"bench.gpu.{name}")
        file, path = module.FILE, out / module.FILE
        done = {record.get("case") for record in protocol.records(path)}
        for case, measure in module.cases(machine):
            if case in done or text not in case:
                continue
            if time.monotonic() >= end:
                left_out.append(case)
                continue
            say(begin=stage, case=case, file=file)
            record = measured(measure, machine)
            protocol.append(path, {"case": case, **record})
            say(end=stage, case=case, result=record["result"], reason=record.get("reason", ""))
            if "lost" in record:
                sys.stdout.flush()
                os._exit(protocol.LOST)  # an ordinary exit would wait for the dead device
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:2000]
    say(end=stage, file=file, left_out=left_out, reason=reason)


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.worker")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--build", choices=("spin", "release"), required=True)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU emulator")
    parser.add_argument("--seconds", action="append", default=[], metavar="STAGE=N")
    parser.add_argument("stages", nargs="+", metavar="STAGE[:TEXT]")
    options = parser.parse_args(arguments)
    seconds = {name: float(n) for name, _, n in (s.partition("=") for s in options.seconds)}
    try:
        machine = open_machine(options.build, options.rehearse)
    except Unusable as error:
        say(unusable=str(error))
        return error.status
    gc.freeze()  # or every collection would walk through all of torch
    say(ready="emulator" if options.rehearse else options.build)
    end = time.monotonic()
    for stage in options.stages:
        # What a stage does not need passes on to the later ones.
        end += seconds.get(stage, float("inf"))
        run(stage, machine, options.out, end)
    return 0


if __name__ == "__main__":
    sys.exit(main())
