"""What the results depend on: the device, its clocks, the versions, the build that was loaded.

Also how many clusters are resident together, which decides what stacked layers may do, and what
`publish` needs for a document of bench/schema.json.
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone

from seqkernels import _extension

from .. import results, timing
from . import manifest
from .machine import Machine

FILE = "facts.jsonl"
# Read, never set.
_QUERY = (
    "name,pci.bus_id,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu,mig.mode.current"
)


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The device first: its resident clusters."""
    yield "device", lambda: device(machine)
    yield "software", software
    yield "document", lambda: document(machine)


def device(machine: Machine) -> dict:
    """What plans are made for, and the clocks and limits at hand."""
    print(f"clusters of 2, 4, 8, 16 blocks resident together: {machine.facts['clusters']}")
    return {**machine.facts, "nvidia_smi": None if machine.rehearsal else nvidia_smi()}


def nvidia_smi() -> dict[str, str] | str:
    """The answers of nvidia-smi by their names, or why there are none."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return dict(zip(_QUERY.split(","), done.stdout.strip().split(", "), strict=False))


def software() -> dict:
    """Versions, the module that was loaded and the manifest of the carried build."""
    built = manifest.read() or {}
    versions = results.versions()
    if versions["commit"] is None and built.get("commit"):  # a copy without its history
        versions["commit"] = built["commit"][:12] + "+changes" * bool(built.get("changed"))
    loaded = _extension.C
    return {
        "versions": versions,
        "module": loaded.__file__.removeprefix(f"{manifest.ROOT}/"),
        "spin_limit": getattr(loaded, "spin_limit", 0),
        "archs": loaded.cuda_archs,
        "manifest": built,
    }


def document(machine: Machine) -> dict:
    """The `device` and `settings` parts of a document of bench/schema.json."""
    timer = timing.timer_for(machine.device)
    calibration = timing.calibrate(machine.device, timer, machine.full_or_tiny(None, 256))
    return {
        "device": results.describe_device(machine.device, calibration),
        "settings": {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "quick": True,
            **asdict(timing.QUICK),
            "openmp": timing.openmp_settings(),
        },
    }
