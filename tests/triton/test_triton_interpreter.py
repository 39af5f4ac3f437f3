"""The kernels in Triton's interpreter, every suite in a process of its own (interpreted.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run(suite: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, FOLDER / "interpreted.py", suite],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        timeout=600,
    )


@pytest.mark.parametrize("suite", ["float32", "half", "cells", "guard", "exchange", "chosen"])
def test_kernels_match_the_reference(suite):
    done = run(suite)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_guard_page_ends_a_kernel_that_writes_beyond():
    assert run("beyond").returncode == -signal.SIGSEGV


def test_an_exchange_without_waiting_is_found():
    done = run("unsynchronised")
    assert done.returncode == 1
    assert "not finite" in done.stderr
