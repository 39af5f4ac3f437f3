"""The recipes of `examples/recipes`: each trains with torch.nn and with seqkernels, in turns.

`python -m bench recipes` runs those whose packages are installed, each in a process of its own,
and writes bench/results/DEVICE/recipes.json, from which the table of docs/frameworks.md is made.
`python -m bench.recipes NAME ROUNDS [STEPS]` is that process.
"""

import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from seqkernels import dispatch

from . import results, tables, timing
from .contestants import BASELINE, OURS

FOLDER = results.BENCH.parent / "examples" / "recipes"
ROUNDS = 7
# How long a round waits for other processes of the machine to pause.
_WAIT_S = 5.0


@dataclass(frozen=True)
class Recipe:
    """One file of the folder.

    Attributes:
        title: the framework and what is trained.
        call: what the recipe calls, `convert` or `patch`.
        package: the framework's distribution.
        module: what is imported from it.
        command: what installs it, if not pip with its name alone.
    """

    title: str
    call: str
    package: str
    module: str
    command: str = ""

    @property
    def missing(self) -> str | None:
        """How to install the package, if it is not."""
        if find_spec(self.module):
            return None
        return f"{self.package} is not installed: `{self.install}`"

    @property
    def install(self) -> str:
        """What installs the package."""
        return self.command or f"pip install {self.package}"


RECIPES = {
    "lightning_module": Recipe("Lightning, GRU", "convert", "lightning", "lightning"),
    "torchrl_resets": Recipe("torchrl, DQN with LSTMModule", "patch", "torchrl", "torchrl"),
    "sb3_recurrent_ppo": Recipe(
        "sb3-contrib, RecurrentPPO", "convert", "sb3-contrib", "sb3_contrib"
    ),
    "forecasting_tft": Recipe(
        "pytorch-forecasting, TemporalFusionTransformer",
        "patch",
        "pytorch-forecasting",
        "pytorch_forecasting",
    ),
    "gluonts_deepar": Recipe(
        "gluonts, DeepAR", "convert", "gluonts", "gluonts", 'pip install "gluonts[torch]"'
    ),
    "speechbrain_crdnn": Recipe("speechbrain, CRDNN", "convert", "speechbrain", "speechbrain"),
    "espnet_lm": Recipe(
        "espnet, LSTM language model",
        "patch",
        "espnet",
        "espnet2",
        "pip install typeguard && pip install --no-deps espnet",
    ),
}


def measure(name: str, rounds: int = ROUNDS, steps: int | None = None) -> dict:
    """An entry of a document's `results`, from a process of its own on the CPU.

    Args:
        name: a key of RECIPES.
        rounds: how often each library is timed, after one run of each that is not.
        steps: what the recipe's `train` gets; by default its own.

    Raises:
        RuntimeError: the recipe failed; its error output is the message.
    """
    command = [sys.executable, "-m", "bench.recipes", name, str(rounds)]
    if steps is not None:
        command.append(str(steps))
    done = subprocess.run(
        command,
        cwd=results.BENCH.parent,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run(names: Iterable[str], rounds: int = ROUNDS) -> dict:
    """Measure recipes and return the document of them."""
    measured, left_out = [], {}
    for name in names:
        if missing := RECIPES[name].missing:
            left_out[name] = missing
            continue
        print(f"{name} ...", file=sys.stderr)
        try:
            measured.append(measure(name, rounds))
        except RuntimeError as error:
            left_out[name] = str(error).splitlines()[-1]
    return {
        "device": results.describe_device(torch.device("cpu"), {}),
        "versions": results.versions(),
        "settings": {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "quick": False,
            "rounds": rounds,
            "openmp": timing.openmp_settings(),
        },
        "results": measured,
        "left_out": left_out,
    }


def stored(root: Path = results.RESULTS) -> list[dict]:
    """Every document under a folder of results, by device."""
    return [json.loads(path.read_text()) for path in sorted(root.glob("*/recipes.json"))]


def table(document: dict) -> str:
    """One row per recipe: seconds of the whole of `train`, their ratio, both numbers."""
    head = ["recipe", "package", "call", "torch.nn s", "p20–p80", "seqkernels s", "p20–p80"]
    head += ["speed-up", "result differs by"]
    rows = []
    for result in document["results"]:
        recipe = RECIPES[result["name"]]
        times = [result["times"][library] for library in (BASELINE, OURS)]
        theirs, ours = (result["values"][library] for library in (BASELINE, OURS))
        star = "\\*" if any(time["contended"] for time in times) else ""
        cells = [recipe.title, f"{recipe.package} {result['version']}", f"`{recipe.call}`"]
        for time in times:
            cells += [f"{time['median']:.2f}", f"{time['p20']:.2f}–{time['p80']:.2f}"]
        ratio = times[0]["median"] / times[1]["median"]
        gap = abs(ours - theirs) / abs(theirs)
        rows.append([*cells, f"**{ratio:.2f}×**{star}", f"{gap:.0e}" if gap else "0"])
    notes = [f"Medians of {document['settings']['rounds']} runs of each, in turns, on the CPU."]
    if any("\\*" in row[-2] for row in rows):
        notes.append("\\* the machine was busy: the quickest quarter of the runs.")
    for name, reason in document["left_out"].items():
        notes.append(f"Not measured: {name}, {reason}.")
    return "\n".join([tables.markdown(head, rows, left=3), "", " ".join(notes)])


def _child(name: str, rounds: int, steps: int | None) -> dict:
    """Run one recipe in this process, `rounds` times with each library, and once before."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("error", message="(convert|revert) left alone")
    warnings.filterwarnings("error", module="seqkernels")
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(FOLDER))
    train = importlib.import_module(name).train
    options = {} if steps is None else {"steps": steps}
    calls = {BASELINE: partial(train, False, **options), OURS: partial(train, True, **options)}
    values, counts = {}, {}
    for library, call in calls.items():
        with dispatch.recording() as recorded:
            values[library] = call()
        counts[library] = len(recorded)
    timer = timing.CpuTimer()
    samples = {library: ([], []) for library in calls}
    order = list(calls)
    for _ in range(rounds):
        for library in order:
            timer.wait(_WAIT_S)
            seconds, clean = timer.sample(calls[library], 1)
            samples[library][0 if clean else 1].append(seconds)
        order.reverse()
    times = {library: timing.times_of(*both) for library, both in samples.items() if rounds}
    return {
        "name": name,
        "version": version(RECIPES[name].package),
        "values": values,
        "dispatched": counts,
        "times": {library: each.to_json() for library, each in times.items()},
    }


if __name__ == "__main__":
    name, rounds, *rest = sys.argv[1:]
    print(json.dumps(_child(name, int(rounds), int(rest[0]) if rest else None)))
