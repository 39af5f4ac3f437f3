"""The worker of `make gpu`, on stages whose outcomes are planted: without torch, in a moment.

$PLANTED is JSON: {stage: {case: outcome}}. An outcome is "ok", "wrong", "nan", "hang", "crash",
"lose" or seconds to take; that of the case "" breaks the stage before its first case. A file beside
$OUT named unusable holds the exit status of a worker that has nothing to run on.
"""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import worker  # noqa: E402

PLANTED = json.loads(os.environ["PLANTED"])


class Machine:
    """A device that a case may lose."""

    lost = False

    def synchronize(self):
        pass

    def failure(self):
        return {"spin": [{"wait": "words", "block": 7}]} if self.lost else None


def open_machine(build, rehearse):
    unusable = Path(os.environ["OUT"], "..", "unusable").resolve()
    if unusable.exists():
        raise worker.Unusable(int(unusable.read_text()), "nothing to run on")
    return Machine()


def outcome(on, planted):
    """What a case does."""
    if planted == "wrong":
        raise AssertionError("error 1 above 0.5")
    if planted == "nan":
        return {"seconds a step": float("nan")}
    if planted == "hang":
        sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
        child = subprocess.Popen(sleep, preexec_fn=os.setpgrp)  # as ninja starts its commands
        with Path(os.environ["OUT"], "..", "children").open("a") as file:
            file.write(f"{child.pid}\n")
        time.sleep(300)
    if planted == "crash":
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if planted == "lose":
        on.lost = True
        raise RuntimeError("CUDA error: unspecified launch failure")
    if planted != "ok":
        time.sleep(planted)
    return {"value": 1}


def stage(name, cases):
    """A module with these cases."""

    def generate(on):
        for case, planted in cases.items():
            if case == "":
                outcome(on, planted)
            else:
                yield case, lambda planted=planted: outcome(on, planted)

    module = types.ModuleType(name)
    module.FILE, module.cases = f"{name}.jsonl", generate
    return module


worker.open_machine = open_machine
sys.modules |= {f"bench.gpu.{name}": stage(name, cases) for name, cases in PLANTED.items()}
sys.exit(worker.main())
