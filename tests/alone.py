"""Run a few tests of every test file in a process that has imported nothing for the others.

python tests/alone.py FILE...

A process that has imported torch, its compiler and pytest, and nothing of seqkernels, forks for
every file; the child runs the first parameter set of every test function that `make test` runs,
up to where it starts Python, since that process has imported nothing for anybody, and for no longer
than it takes to import and register all that a test needs. Prints what failed.
"""

import gc
import io
import multiprocessing.process
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import torch._dynamo.testing
import torch._inductor
import torch.testing._internal.optests  # noqa: F401

SECONDS = 120  # that a test may take
ENOUGH = 1  # seconds of processor time after which a test has met what it needs


class StartOfEach:
    """Runs the first parameter set of every function, and the first seconds of that."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        first = {(item.path, item.originalname): item for item in reversed(items)}
        items[:] = reversed(first.values())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self):
        ended = []

        def end(*_):
            ended.append(True)
            pytest.skip("it has met what it needs")

        signal.signal(signal.SIGVTALRM, end)
        signal.setitimer(signal.ITIMER_VIRTUAL, ENOUGH)
        try:
            return (yield)
        except BaseException:
            if ended:  # whatever the test made of it
                pytest.skip("it has met what it needs")
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class NoPython(subprocess.Popen):
    """Ends a test that starts this Python; other programs run."""

    def __init__(self, args, *others, **options):
        if not isinstance(args, str) and str(args[0]) == sys.executable:
            pytest.skip("it starts Python")
        super().__init__(args, *others, **options)


def run(path: str) -> int:
    """Run a file's tests in this process; the exit status of pytest."""
    subprocess.Popen = NoPython
    multiprocessing.process.BaseProcess.start = lambda _: pytest.skip("it starts Python")
    assert not any(name.split(".")[0] == "seqkernels" for name in sys.modules)
    options = [
        "-q",
        "-m",
        "not exhaustive and not cuda",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        # The parent has imported torch's compiler, which imports hypothesis.
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    status = pytest.main([path, *options, f"--timeout={SECONDS}"], plugins=[StartOfEach()])
    # Exhaustive tests alone, or none that this machine has the means for.
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


def alone(path: str) -> str:
    """What pytest printed in a child if a test failed there, otherwise nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        printed, status = io.StringIO(), 1
        try:
            with redirect_stdout(printed), redirect_stderr(printed):
                status = run(path)
        except BaseException as error:
            printed.write(repr(error))
        finally:
            with open(write, "w") as pipe:
                pipe.write(printed.getvalue() if status else "")
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return text or ("" if status == 0 else f"ended with status {status}")


def main(paths: list[str]) -> int:
    """Every file in turn; 1 if one failed."""
    gc.freeze()  # each child would walk all that torch has made
    failed = {path: text for path in paths if (text := alone(path))}
    for path, text in failed.items():
        print(f"=== {path}\n{text[-3000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
