"""Measured plans: the fastest of the best few estimates, kept on disk.

Off unless `SEQKERNELS_TRITON_TUNE=1`: then a shape's plan is the cheapest estimate, the same in
every process. When on, the first call of a shape measures; later calls and processes use the
result. There is one JSON file for each device and set of versions in `$SEQKERNELS_CACHE_DIR`, by
default the platform's directory for caches; it is replaced as a whole: no reader sees half of it.
Nothing is measured while a stream is captured, since measuring waits for the device.
"""

import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from .plan import Plan

# How many of the best estimates are measured.
TUNED = 4
# Increased when a change of the kernels makes older measurements invalid.
_FORMAT = 1

_found: dict[tuple[Path, str], Plan] = {}

Timer = Callable[[Callable[[], None]], float]


def enabled() -> bool:
    """Whether measuring is on."""
    return os.environ.get("SEQKERNELS_TRITON_TUNE") == "1"


def cache_folder() -> Path:
    """Where measured plans are kept."""
    chosen = os.environ.get("SEQKERNELS_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "seqkernels"


@lru_cache(maxsize=16)
def _file_name(device: torch.device) -> str:
    """The name of the file for a device with these versions of torch and Triton."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = f"{name}-torch{torch.__version__}-triton{version('triton')}-{_FORMAT}"
    return f"triton-{re.sub('[^A-Za-z0-9.+]+', '-', facts)}.json"


def choose(
    plans: tuple[Plan, ...], key: tuple, run: Callable[[Plan], None], device: torch.device,
    timer: Timer | None = None,
) -> Plan:  # fmt: skip
    """The plan of a shape: the first of `plans`, or a measured one where measuring is on.

    Args:
        plans: candidates, the cheapest estimate first.
        key: what decides the plan beside the device; plain values.
        run: runs a plan; what it writes is written again by every run.
        device: where it runs.
        timer: milliseconds of a function; by default Triton's do_bench.
    """
    if not enabled():
        return plans[0]
    path, name = cache_folder() / _file_name(device), " ".join(map(str, key))
    if (path, name) not in _found:
        kept = _read(path).get(name)
        # A plan that is not a candidate was measured for other kernels, or the file was edited.
        found = next((p for p in plans if kept == asdict(p)), None)
        if found is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return plans[0]
            found = _measure(plans[:TUNED], run, timer or _do_bench)
            _write(path, name, found)
        _found[path, name] = found
    return _found[path, name]


def _do_bench(function: Callable[[], None]) -> float:
    from triton.testing import do_bench

    return do_bench(function, warmup=5, rep=20)


def _measure(plans: tuple[Plan, ...], run: Callable[[Plan], None], timer: Timer) -> Plan:
    """The fastest, the first one of equals. A plan that the device has no room for is skipped."""
    from triton.runtime.errors import OutOfResources

    times: dict[Plan, float] = {}
    for plan in plans:
        try:
            times[plan] = timer(lambda plan=plan: run(plan))
        except OutOfResources as error:
            warnings.warn(f"{plan} was not measured: {error}", RuntimeWarning, stacklevel=2)
    return min(times, key=times.get) if times else plans[0]


def _read(path: Path) -> dict[str, dict]:
    """The plans in a file; none if there is no file or it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(kept, dict):
            raise ValueError("it holds no table")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:  # also text that is not UTF-8
        warnings.warn(f"{path} is ignored: {error}", RuntimeWarning, stacklevel=2)
        return {}
    return kept


def _write(path: Path, name: str, plan: Plan) -> None:
    """Add a plan to a file; what another process writes at the same time may be lost, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_read(path) | {name: asdict(plan)}, indent=1, sort_keys=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            whole.write_text(text, encoding="utf-8")
            os.replace(whole, path)
    except OSError as error:
        warnings.warn(f"plans are not kept in {path}: {error}", RuntimeWarning, stacklevel=2)
