"""Result files: one JSON per device and suite, rewritten whole; git keeps the history."""

import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BENCH = Path(__file__).parent
RESULTS = BENCH / "results"
SCHEMA_VERSION = 1


def problems(document: Any) -> list[str]:
    """What in a document breaks bench/schema.json, by its place; nothing if it is right."""
    import jsonschema  # a machine that only measures has none

    schema = json.loads((BENCH / "schema.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return sorted(f"{error.json_path}: {error.message}" for error in errors)


def write(document: dict, root: Path = RESULTS) -> Path:
    """Write a document to <root>/<device>/<suite>.json and return the path.

    Raises:
        ValueError: the document breaks the schema.
    """
    wrong = problems(document)
    if wrong:
        raise ValueError("the results break bench/schema.json:\n" + "\n".join(wrong))
    return save(document, document["suite"], root)


def save(document: dict, name: str, root: Path = RESULTS) -> Path:
    """Write a document, unchecked, to <root>/<device>/<name>.json and return the path."""
    path = root / folder(document["device"]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def read(path: Path) -> dict:
    """Read a result file.

    Raises:
        ValueError: it breaks the schema.
    """
    document = json.loads(path.read_text())
    wrong = problems(document)
    if wrong:
        raise ValueError(f"{path} breaks bench/schema.json:\n" + "\n".join(wrong))
    return document


def stored(root: Path = RESULTS) -> list[Path]:
    """All suite results, by device and suite; other JSON files of the folder have no suite."""
    return [
        path
        for path in sorted(root.glob("*/*.json"))
        if {"schema", "suite"} <= json.loads(path.read_text()).keys()
    ]


def folder(device: dict) -> str:
    """Name of a device's folder: its model, and the threads of a CPU."""
    name = re.sub(r"\((r|tm)\)", "", device["name"].lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{slug}-{device['threads']}t" if device["type"] == "cpu" else slug


def describe_device(device: torch.device, calibration: dict) -> dict:
    """The `device` part of a document."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "threads": torch.get_num_threads(),
            "capability": f"sm_{properties.major}{properties.minor}",
            "driver": _output(
                "nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
            "calibration": calibration,
        }
    return {
        "type": "cpu",
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "driver": None,
        "calibration": calibration,
    }


def versions() -> dict[str, str | None]:
    """The `versions` part of a document: what the times depend on."""
    import seqkernels

    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seqkernels": getattr(seqkernels, "__version__", None),
        "commit": _commit(),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }
    for package in ("triton", "flashrnn", "haste_pytorch", "torchrl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the working tree, marked where tracked source differs from it."""
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output(
        "git", "status", "--porcelain", "-uno", "--", "csrc", "seqkernels", "bench/*.py"
    )
    return f"{head}+changes" if head and changed else head


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=BENCH, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
