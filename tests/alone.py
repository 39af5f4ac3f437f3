"""Run a few tests of every test file in a process that has imported nothing for the others.

python tests/alone.py FILE...

A process that has imported torch, its compiler and pytest, and nothing of seqkernels, forks for
every file; the child runs the first parameter set of every test function that `make test` runs,
up to where it starts Python: that process has imported nothing for anybody. Prints what failed.
"""

import gc
import multiprocessing.process
import subprocess
import sys

import forked
import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import torch._dynamo.testing
import torch._inductor.compile_fx
import torch.testing._internal.optests  # noqa: F401

SECONDS = 120  # that a test may take


class FirstOfEach:
    """Leaves the first parameter set of every function."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        first = {(item.path, item.originalname): item for item in reversed(items)}
        items[:] = reversed(first.values())


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
    status = pytest.main([path, *options, f"--timeout={SECONDS}"], plugins=[FirstOfEach()])
    # Exhaustive tests alone, or none that this machine has the means for.
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)


def alone(path: str) -> str:
    """What pytest printed in a fork if a test failed there, otherwise nothing."""
    done = forked.call(run, path)
    printed = done.stdout + done.stderr
    return (printed or f"ended with status {done.returncode}") if done.returncode else ""


def main(paths: list[str]) -> int:
    """Every file in turn; 1 if one failed."""
    gc.freeze()  # each child would walk all that torch has made
    failed = {path: text for path in paths if (text := alone(path))}
    for path, text in failed.items():
        print(f"=== {path}\n{text[-3000:]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
