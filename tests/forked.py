"""Calls in forks of a process that has imported what they need.

Importing torch and Triton takes longer than most of what a script does with them. A script that is
run many times ends in

    if __name__ == "__main__":
        forked.serve(main)
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

SECONDS = 600  # that a run may take; SIGALRM ends it then


class Script:
    """Runs a script with different arguments.

    Args:
        path: of the script.
        environment: variables beside those of this process.
    """

    def __init__(self, path: Path, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """What `subprocess.run` returns of the script with these arguments."""
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"{self.process.args} ended with {self.process.wait()}"
        return subprocess.CompletedProcess(arguments, **json.loads(answer))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(main: Callable[..., None]) -> None:
    """Call `main` with every list of arguments that comes in, each in a fork of its own."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.freeze()  # each child would walk all that was imported
    for line in sys.stdin:
        done = call(main, *json.loads(line), seconds=SECONDS)
        found = {name: getattr(done, name) for name in ("returncode", "stdout", "stderr")}
        print(json.dumps(found), file=answers, flush=True)


def call(function: Callable, *arguments, seconds: int = 0) -> subprocess.CompletedProcess:
    """Call a function in a fork of this process.

    Args:
        function: returns its exit status; None is 0, and an exception is 1.
        arguments: of the function.
        seconds: after which SIGALRM ends it; 0 is never.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as complained:
        child = os.fork()
        if child == 0:
            _run(function, arguments, seconds, printed.fileno(), complained.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (printed, complained):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *texts)


def _run(function, arguments, seconds: int, printed: int, complained: int) -> None:
    """The whole life of a child: it never returns."""
    status = 1
    try:
        for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), printed, complained)):
            os.dup2(source, target)
        signal.alarm(seconds)
        status = function(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
