"""The kernels in Triton's interpreter, every suite in a process of its own (interpreted.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("triton")
FOLDER = Path(__file__).parent

SUITES = ("float32", "half", "cells", "guard", "exchange", "late", "chosen", "opcheck", "compiled")
SUITES += ("small", "bounded", "stuck", "functions")
# Polls after which a wait gives up.
SPIN_LIMITS = {"bounded": "100000000", "stuck": "50"}
# Suites that leave a wait out.
RACES = ("unsynchronised", "unsynchronised_reset", "half_synchronised")


def run(suite: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, FOLDER / "interpreted.py", suite],
        capture_output=True,
        text=True,
        env=os.environ
        | {"TRITON_INTERPRET": "1", "SEQKERNELS_SPIN_LIMIT": SPIN_LIMITS.get(suite, "0")},
        timeout=600,
    )


def suites(*names: str, quick: tuple[str, ...] = ()) -> list:
    """Suites as parameters; `make test` takes the quick ones."""
    return [
        pytest.param(name, marks=[] if name in quick else [pytest.mark.exhaustive])
        for name in names
    ]


@pytest.mark.parametrize("suite", suites(*SUITES, quick=("cells", "chosen")))
def test_kernels_match_the_reference(suite):
    done = run(suite)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.exhaustive
def test_a_guard_page_ends_a_kernel_that_writes_beyond():
    assert run("beyond").returncode == -signal.SIGSEGV


@pytest.mark.parametrize("suite", suites(*RACES))
def test_an_exchange_without_waiting_is_found(suite):
    done = run(suite)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr, done.stderr[-3000:]
