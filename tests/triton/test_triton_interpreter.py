"""The kernels in Triton's interpreter, every suite in a process of its own (interpreted.py)."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


SUITES = ("float32", "half", "cells", "guard", "exchange", "late", "chosen", "opcheck", "compiled")
SUITES += ("small", "bounded", "stuck", "functions")
# Polls after which a wait gives up.
SPIN_LIMITS = {"bounded": "100000000", "stuck": "50"}
# Suites that leave a wait out.
RACES = ("unsynchronised", "unsynchronised_reset", "half_synchronised")


@pytest.fixture(scope="module")
def finished():
    """Every suite's process, two at a time, as futures."""
    names = (*SUITES, "beyond", *RACES)
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {name: pool.submit(run, name) for name in names}


def run(suite: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, FOLDER / "interpreted.py", suite],
        capture_output=True,
        text=True,
        env=os.environ
        | {"TRITON_INTERPRET": "1", "SEQKERNELS_SPIN_LIMIT": SPIN_LIMITS.get(suite, "0")},
        timeout=600,
    )


@pytest.mark.parametrize("suite", SUITES)
def test_kernels_match_the_reference(finished, suite):
    done = finished[suite].result()
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_guard_page_ends_a_kernel_that_writes_beyond(finished):
    assert finished["beyond"].result().returncode == -signal.SIGSEGV


@pytest.mark.parametrize("suite", RACES)
def test_an_exchange_without_waiting_is_found(finished, suite):
    done = finished[suite].result()
    assert done.returncode == 1
    assert "AssertionError" in done.stderr, done.stderr[-3000:]
