"""Which tests `make test` leaves out, in what order tests run, and what a test needs of a machine.

`make test` runs `-m "not exhaustive"`, `make test-rest` what that left out, `make test-all` and a
plain `pytest` everything. A test is exhaustive that is marked so, and so are most parameter sets of
every other: as few are kept as show every value of every parameter, or with
`@pytest.mark.pairs("cell", "dtype")` every pair of values of the parameters named.
"""

import importlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TOOLKIT = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def _no_cuda_build() -> str | None:
    from seqkernels import _extension

    if _extension.C is not None and _extension.C.with_cuda:
        return None
    return _extension.build_report().get("cuda_reason") or _extension.REASON or "built without CUDA"


def _missing(path: str) -> str | None:
    return None if (TOOLKIT / path).exists() else f"no {path} in {TOOLKIT} (CUDA_HOME names it)"


def _not_installed(*packages: str) -> str | None:
    missing = [name for name in packages if not find_spec(name)]
    return f"{' and '.join(missing)} not installed" if missing else None


def _no_speechbrain() -> str | None:
    missing = _not_installed("speechbrain", "torchaudio")
    if missing is None:
        try:  # one that is made for CUDA does not load beside a torch for the CPU
            importlib.import_module("torchaudio")
        except OSError as error:
            missing = f"torchaudio does not load ({error})"
    return missing


# What a test can need of a machine without a GPU: (name, why it is not here, or None).
NEEDS = {
    "cuda_build": ("the CUDA half of the extension", _no_cuda_build),
    "nvcc": ("nvcc", lambda: _missing("bin/nvcc")),
    "headers": ("the CUDA toolkit's headers", lambda: _missing("include/cuda_fp16.h")),
    "triton": ("Triton", lambda: _not_installed("triton")),
    "onnx": ("ONNX", lambda: _not_installed("onnx", "onnxscript", "onnxruntime")),
    "lightning": ("Lightning", lambda: _not_installed("lightning")),
    "torchrl": ("torchrl", lambda: _not_installed("torchrl")),
    "sb3-contrib": ("sb3-contrib", lambda: _not_installed("sb3_contrib")),
    "pytorch-forecasting": ("pytorch-forecasting", lambda: _not_installed("pytorch_forecasting")),
    "gluonts": ("gluonts", lambda: _not_installed("gluonts")),
    "speechbrain": ("speechbrain", _no_speechbrain),
    "espnet": ("espnet", lambda: _not_installed("espnet2")),
}

# Files whose tests may come out otherwise on a build with the CUDA kernels.
BUILD_DEPENDENT = ("test_info.py", "test_triton_dispatch.py", "test_explain.py", "test_install.py")
# Files whose tests of different parameters have nothing in common and take long.
SPLIT = ("test_triton_compile.py", "test_triton_interpreter.py", "test_cpu_isa.py", "test_alone.py")
# What takes longest begins first: paths begin so.
LONGEST_FIRST = (
    "triton/test_triton_compile",
    "emulator/test_emulated_joined",
    "triton/test_triton_interpreter",
    "emulator/",
    "nn/test_joined",
    "cuda/",
    "test_gpu_rehearsal",
    "test_alone",
    "cpu/",
)


def first_of(values: Iterable) -> list:
    """Parameters of which `make test` takes the first alone: each value costs seconds."""
    first, *others = values
    sets = [value if isinstance(value, tuple) else (value,) for value in others]
    return [first, *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in sets)]


@cache
def lacking(need: str) -> str | None:
    """Why this machine or build has not what a test needs, or None."""
    return NEEDS[need][1]()


def _needs(item: pytest.Item) -> list[str]:
    return [need for mark in item.iter_markers("needs") for need in mark.args]


def lacks(item: pytest.Item) -> str | None:
    """The first need of a test that is not met, or None."""
    return next((need for need in _needs(item) if lacking(need)), None)


def representatives(shown: list[frozenset]) -> list[int]:
    """Indices of few sets that together show all that any of them shows."""
    missing, chosen = set().union(*shown), []
    while missing:
        best = max(range(len(shown)), key=lambda i: len(shown[i] & missing))
        chosen.append(best)
        missing -= shown[best]
    return chosen


def _shown(item: pytest.Item) -> frozenset:
    """Values of the parameters, and pairs of those that `pairs` names."""
    # Objects are told apart by their address: some cannot be hashed.
    values = {name: (name, id(value)) for name, value in item.callspec.params.items()}
    named = [name for mark in item.iter_markers("pairs") for name in mark.args if name in values]
    pairs = combinations([values[name] for name in named], 2)
    return frozenset((*values.values(), *pairs))


def mark_exhaustive(items: list[pytest.Item]) -> None:
    """Mark all but the representatives of every test function's parameter sets."""
    functions = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("exhaustive") is None:
            functions[item.path, item.originalname].append(item)
    for sets in functions.values():
        kept = set(representatives([_shown(item) for item in sets]))
        for index, item in enumerate(sets):
            if index not in kept:
                item.add_marker(pytest.mark.exhaustive)


def mark_builds(items: list[pytest.Item]) -> None:
    """Mark what depends on whether the extension has its CUDA half."""
    for item in items:
        if "cuda_build" in _needs(item) or item.path.name in BUILD_DEPENDENT:
            item.add_marker(pytest.mark.cuda_build)


def _turn(item: pytest.Item) -> int:
    path = item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
    turns = (i for i, name in enumerate(LONGEST_FIRST) if path.startswith(name))
    return next(turns, len(LONGEST_FIRST))


def arrange(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=_turn)


def unit(nodeid: str) -> str:
    """What stays together on one worker: a file's tests, of some files those of one parameter."""
    path, _, name = nodeid.partition("::")
    _, _, parameters = name.partition("[")
    return f"{path}[{parameters}" if path.endswith(SPLIT) else path


def kind(item: pytest.Item) -> str:
    """What the summary counts a test as: its folder, or its file's name."""
    folder = item.path.parent.relative_to(TESTS).as_posix()
    return item.path.stem.removeprefix("test_") if folder == "." else folder


def paragraphs(exhaustive: Counter, unmet: Counter, quick: bool) -> list[tuple[str, bool]]:
    """What the summary says of tests left out: (text, whether it is a warning).

    Args:
        exhaustive: left out by `-m "not exhaustive"`, by kind.
        unmet: left out for lack of something, by its name in NEEDS.
        quick: whether this is `make test`.
    """
    found = []
    for need, count in unmet.items():
        name, _ = NEEDS[need]
        text = f"{count} tests that need {name} were left out: {lacking(need)}."
        found.append((text if quick else f"NOT EVERYTHING WAS TESTED: {text}", not quick))
    if quick:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(exhaustive.items()))
        found.append(
            (
                f"{exhaustive.total()} further parameter sets and long proofs were left out "
                f"({kinds}); `make test-all` runs them.",
                False,
            )
        )
    return found
