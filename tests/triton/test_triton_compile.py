"""Ahead-of-time compilation for sm_80, 90 and 100: what the kernels need of each GPU.

The kernels are shared out over the architectures, a third to each, so that every cell, dtype,
direction, schedule and kind of alignment is compiled once and every one but the cell meets all
three. `SEQKERNELS_ALL_CUBINS=1` compiles all kernels for all three instead: half an hour and more
on two cores.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seqkernels.cells import CELLS

FOLDER = Path(__file__).parent
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
# A few bytes beside the operands: barriers, the broadcast of an atomic's result.
SHARED_EXTRA = 2 << 10


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A compiling process for each architecture, two at a time, as futures."""

    def run(arch: int) -> subprocess.CompletedProcess:
        environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
        environment.pop("TRITON_INTERPRET", None)
        everything = os.environ.get("SEQKERNELS_ALL_CUBINS") == "1"
        share = (0, 1) if everything else (list(SHARED_LIMIT).index(arch), len(SHARED_LIMIT))
        command = [sys.executable, FOLDER / "ahead.py", "all", str(arch), *map(str, share)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {arch: pool.submit(run, arch) for arch in SHARED_LIMIT}


@pytest.fixture(scope="module", params=SHARED_LIMIT, ids=lambda arch: f"sm_{arch}")
def compiled(request, processes):
    """(arch, facts of every kernel)."""
    run = processes[request.param].result()
    assert run.returncode == 0, run.stderr
    return request.param, [json.loads(line) for line in run.stdout.splitlines()]


def test_nothing_spills(compiled):
    _, kernels = compiled
    assert len(kernels) >= 60
    assert {k["kind"] for k in kernels} == {"sliced", "shared", "split", "resident", "rows"}
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        assert "LDL" not in kernel and "STL" not in kernel, kernel


def test_shared_memory_is_within_the_limit_and_the_estimate(compiled):
    arch, kernels = compiled
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_LIMIT[arch], kernel
        assert kernel["shared"] <= kernel["estimate"] + SHARED_EXTRA, kernel


def test_products_run_on_tensor_cores(compiled):
    _, kernels = compiled
    for kernel in kernels:
        found = any(name in kernel for name in ("HMMA", "HGMMA", "UTCHMMA"))
        assert found == kernel["tensor_core"], kernel


def test_exchange_is_a_release_and_an_acquire(compiled):
    _, kernels = compiled
    assert any(kernel["exchange"] for kernel in kernels)
    for kernel in kernels:
        # The release orders the stores; the acquire drops what L1 holds of before.
        assert ("MEMBAR" in kernel) == kernel["exchange"], kernel
        assert ("CCTL" in kernel) == kernel["exchange"], kernel


@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(a, marks=pytest.mark.exhaustive) for a in (80, 100))]
)
def test_barriers_lie_between_what_is_written_and_what_is_read(arch, tmp_path):
    """Every step passes a barrier behind its stores, and a second stage one before its loads."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, FOLDER / "ahead.py", "barriers", str(arch)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) == len(CELLS) * 2 * 2 * 2
    for kernel in kernels:
        stages = 2 if kernel["cell"] == "gru_reset_before" else 1
        if kernel["schedule"] == "sliced":
            assert kernel["step"] == [["load", "store"]] * stages + [[]], kernel
        assert kernel["exchanges"] == (0 if kernel["schedule"] == "sliced" else stages), kernel
        assert not kernel["unordered"], kernel


@pytest.mark.parametrize("limit", ["0", "1000"])
def test_a_wait_gives_up_if_it_is_told_to(limit, tmp_path):
    """Only then is anything compiled for it: an assertion, and prints of its numbers."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "SEQKERNELS_SPIN_LIMIT": limit}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, FOLDER / "ahead.py", "waits"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) == 4
    for kernel in kernels:
        texts = "".join(kernel["texts"])
        for text in (": gave up waiting for its group", ": group, target, arrived"):
            assert (text in texts) == (limit != "0"), kernel
        # The stack is for what is printed; nothing is ever read back from it.
        assert (kernel["stack"] > 0) == (limit != "0") and "LDL" not in kernel, kernel


def test_a_limit_that_is_no_number_is_refused():
    environment = os.environ | {"SEQKERNELS_SPIN_LIMIT": "many"}
    command = [sys.executable, "-c", "import seqkernels.triton.exchange"]
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=FOLDER.parents[1]
    )
    assert run.returncode == 1 and "SEQKERNELS_SPIN_LIMIT must be a number of polls" in run.stderr
