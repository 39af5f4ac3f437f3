"""The kernels in Triton's interpreter, every suite in a process of its own (interpreted.py)."""

import contextlib
import functools
import signal
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.needs("triton")
FOLDER = Path(__file__).parent

SUITES = ("float32", "half", "cells", "guard", "exchange", "late", "chosen", "opcheck", "compiled")
SUITES += ("small", "bounded", "stuck", "functions", "more", "more_whole")
SUITES += ("gradients_leaky_rnn", "gradients_peephole_lstm")
SUITES += ("gradients_scaled_gru", "gradients_slstm")
# Polls after which a wait gives up.
SPIN_LIMITS = {"bounded": "100000000", "stuck": "50"}
# Suites that leave a wait out.
RACES = ("unsynchronised", "unsynchronised_reset", "half_synchronised")


@pytest.fixture(scope="module")
def run():
    """Runs a suite."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def script(limit: str) -> forked.Script:
            """One process for each limit, which is read when the kernels are imported."""
            path, options = FOLDER / "interpreted.py", {"SEQKERNELS_SPIN_LIMIT": limit}
            own = forked.Script(path, TRITON_INTERPRET="1", **options)
            return stack.enter_context(contextlib.closing(own))

        yield lambda suite: script(SPIN_LIMITS.get(suite, "0")).run(suite)


def suites(*names: str, quick: tuple[str, ...] = ()) -> list:
    """Suites as parameters; `make test` takes the quick ones."""
    return [
        pytest.param(name, marks=[] if name in quick else [pytest.mark.exhaustive])
        for name in names
    ]


@pytest.mark.parametrize("suite", suites(*SUITES, quick=("cells", "chosen", "more")))
def test_kernels_match_the_reference(run, suite):
    done = run(suite)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.exhaustive
def test_a_guard_page_ends_a_kernel_that_writes_beyond(run):
    assert run("beyond").returncode == -signal.SIGSEGV


@pytest.mark.parametrize("suite", suites(*RACES))
def test_an_exchange_without_waiting_is_found(run, suite):
    done = run(suite)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr, done.stderr[-3000:]
