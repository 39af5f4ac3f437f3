"""Options and settings shared by all tests."""

import os
import sys
from pathlib import Path

# Before torch loads OpenMP: threads that spin between regions cost tenfold on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# tests/tolerance.py, tests/gpu.py and tests/emulator/emulator.py, from every folder.
sys.path[:0] = [str(Path(__file__).parent / name) for name in (".", "emulator", "cuda")]

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--require-cuda", action="store_true", help="fail, not skip, a test that finds no GPU"
    )


def pytest_configure(config):
    if config.getoption("--require-cuda"):
        os.environ["SEQKERNELS_REQUIRE_CUDA"] = "1"


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)
