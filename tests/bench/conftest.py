"""The benchmarks are a folder of the repository, not an installed package."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import runner, timing  # noqa: E402


@functools.cache
def rates(device) -> dict:
    return timing.calibrate(device, timing.timer_for(device))


@pytest.fixture(autouse=True)
def calibrated_once(monkeypatch):
    """All runs take the machine's rates as measured once: that takes longer than most tests."""
    monkeypatch.setattr(runner, "calibrate", lambda device, timer: rates(device))
