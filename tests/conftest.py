"""Options and settings shared by all tests."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

# Before torch loads OpenMP: threads that spin between regions cost tenfold on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# What a shell starts in the background ignores Ctrl-C, and so would the commands that are tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The package `bench` before the folder tests/bench; then tests/tolerance.py, tests/gpu.py and
# tests/emulator/emulator.py, from every folder; and csrc/units.py.
TESTS = Path(__file__).resolve().parent
sys.path[:0] = map(
    str, (TESTS.parent, *(TESTS / name for name in (".", "emulator", "cuda", "cells", "../csrc")))
)

import pytest  # noqa: E402
import tiers  # noqa: E402
import torch  # noqa: E402

LEFT_OUT = pytest.StashKey[dict[str, Counter]]()


def pytest_addoption(parser):
    parser.addoption(
        "--require-cuda", action="store_true", help="fail, not skip, a test that finds no GPU"
    )


def pytest_configure(config):
    config.stash[LEFT_OUT] = {"exhaustive": Counter(), "unmet": Counter()}
    if config.getoption("--require-cuda"):
        os.environ["SEQKERNELS_REQUIRE_CUDA"] = "1"


def is_quick(config) -> bool:
    return "not exhaustive" in config.getoption("markexpr")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config, items):
    tiers.mark_exhaustive(items)
    tiers.mark_builds(items)
    tiers.arrange(items)
    left_out, kept, unmet = config.stash[LEFT_OUT], [], []
    for item in items:
        if is_quick(config) and item.get_closest_marker("exhaustive"):
            left_out["exhaustive"][tiers.kind(item)] += 1
            kept.append(item)  # pytest itself leaves these out
        elif need := tiers.lacks(item):
            left_out["unmet"][need] += 1
            unmet.append(item)
        else:
            kept.append(item)
    items[:] = kept
    if unmet:
        config.hook.pytest_deselected(items=unmet)


def pytest_sessionfinish(session):
    """Under xdist only the workers know what was collected; all know the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = {
            name: dict(counts) for name, counts in session.config.stash[LEFT_OUT].items()
        }


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return tiers.unit(nodeid)

    return ByUnit(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for name, counts in getattr(node, "workeroutput", {}).get("left_out", {}).items():
        node.config.stash[LEFT_OUT][name] = Counter(counts)


def pytest_terminal_summary(terminalreporter, config):
    for text, warning in tiers.paragraphs(**config.stash[LEFT_OUT], quick=is_quick(config)):
        terminalreporter.write_line(text, red=warning, bold=warning)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)
