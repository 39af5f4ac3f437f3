"""Ahead-of-time compilation for sm_80, 90 and 100: what the kernels need of each GPU.

The kernels are shared out over the architectures, a third to each, so that every cell, dtype,
direction, schedule and kind of alignment is compiled once and every one but the cell meets all
three. `SEQKERNELS_ALL_CUBINS=1` compiles all kernels for all three instead: half an hour and more
on two cores.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("triton")

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
# A few bytes beside the operands: barriers, the broadcast of an atomic's result.
SHARED_EXTRA = 2 << 10


# Parts of an architecture's share that are compiled in one process; the first is soon done.
PARTS = [(90, 0, 4), (80, 0, 0), (100, 0, 0), (90, 4, 0)]


def script(**environment: str) -> forked.Script:
    """ahead.py. Triton keeps what it compiles, by the content of all of it."""
    cache = os.environ.get("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
    return forked.Script(FOLDER / "ahead.py", **{"TRITON_CACHE_DIR": cache} | environment)


def lines(run: subprocess.CompletedProcess) -> list[str]:
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def ahead():
    """Lines that ahead.py prints."""
    with contextlib.closing(script()) as found:
        yield lambda *arguments: lines(found.run(*map(str, arguments)))


def share(arch: int) -> tuple[int, int]:
    everything = os.environ.get("SEQKERNELS_ALL_CUBINS") == "1"
    return (0, 1) if everything else (list(SHARED_LIMIT).index(arch), len(SHARED_LIMIT))


def part(arch: int, begin: int, end: int):
    """A part as a parameter; `make test` takes the first."""
    marks = [] if (arch, begin, end) == PARTS[0] else [pytest.mark.exhaustive]
    return pytest.param((arch, begin, end), marks=marks, id=f"sm_{arch}-{begin}-{end or ''}")


@pytest.fixture(scope="module", params=[part(*p) for p in PARTS])
def compiled(ahead, request):
    """(arch, facts of every kernel of a part)."""
    arch, *places = request.param
    return arch, [json.loads(line) for line in ahead("all", arch, *share(arch), *places)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_every_share_has_every_kind_of_kernel(ahead, arch):
    (line,) = ahead("kinds", arch, *share(arch))
    count, *kinds = line.split()
    assert int(count) >= 57 and set(kinds) == {"sliced", "shared", "split", "resident"}


def test_nothing_spills(compiled):
    _, kernels = compiled
    assert {"rows"} < {k["kind"] for k in kernels}
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
    assert {True, False} == {kernel["exchange"] for kernel in kernels}
    for kernel in kernels:
        # The release orders the stores; the acquire drops what L1 holds of before.
        assert ("MEMBAR" in kernel) == kernel["exchange"], kernel
        assert ("CCTL" in kernel) == kernel["exchange"], kernel


@pytest.mark.exhaustive
def test_cells_from_outside_do_not_spill(ahead):
    kernels = [json.loads(line) for line in ahead("more", 90)]
    assert {k["kind"] for k in kernels} == {"sliced", "shared", "split", "resident", "rows"}
    for kernel in kernels:
        assert kernel["stack"] == 0 and kernel["shared"] <= SHARED_LIMIT[90], kernel
        assert kernel["shared"] <= kernel["estimate"] + SHARED_EXTRA, kernel


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_barriers_lie_between_what_is_written_and_what_is_read(ahead, arch):
    """Every step passes a barrier behind its stores, and a second stage one before its loads."""
    kernels = [json.loads(line) for line in ahead("barriers", arch)]
    assert len(kernels) == len(CELLS) * 2 * 2 * 2
    for kernel in kernels:
        stages = len(CELLS[kernel["cell"]].stages)
        if kernel["schedule"] == "sliced":
            assert kernel["step"] == [["load", "store"]] * stages + [[]], kernel
        assert kernel["exchanges"] == (0 if kernel["schedule"] == "sliced" else stages), kernel
        assert not kernel["unordered"], kernel


@pytest.mark.exhaustive
@pytest.mark.parametrize("limit", ["0", "1000"])
def test_a_wait_gives_up_if_it_is_told_to(limit, tmp_path):
    """Only then is anything compiled for it: an assertion, and prints of its numbers."""
    own = script(TRITON_CACHE_DIR=str(tmp_path), SEQKERNELS_SPIN_LIMIT=limit)
    with contextlib.closing(own):
        kernels = [json.loads(line) for line in lines(own.run("waits"))]
    assert len(kernels) == 4
    for kernel in kernels:
        texts = "".join(kernel["texts"])
        for text in (": gave up waiting for its group", ": group, target, arrived"):
            assert (text in texts) == (limit != "0"), kernel
        # The stack is for what is printed; nothing is ever read back from it.
        assert (kernel["stack"] > 0) == (limit != "0") and "LDL" not in kernel, kernel


@pytest.mark.exhaustive
def test_a_limit_that_is_no_number_is_refused():
    environment = os.environ | {"SEQKERNELS_SPIN_LIMIT": "many"}
    command = [sys.executable, "-c", "import seqkernels.triton.exchange"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.returncode == 1 and "SEQKERNELS_SPIN_LIMIT must be a number of polls" in run.stderr
