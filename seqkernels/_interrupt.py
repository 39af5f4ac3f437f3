"""Ctrl-C during `python -m seqkernels`: imported before torch, whose import takes seconds.

A command then ends without a traceback. Where another program imports seqkernels nothing changes.
"""

import contextlib
import os
import signal
import sys

INTERRUPTED = 130  # the exit status that shells give to a command ended by Ctrl-C


def leave(number, frame) -> None:
    """End this process at once."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, b"\ninterrupted\n")
    os._exit(INTERRUPTED)


def end(status: int) -> None:
    """Exit from a command; after a Ctrl-C another one no longer changes its status."""
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _is_command() -> bool:
    # Until Python has found the module that -m names, it calls it "-m".
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return False
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    return module.partition(".")[0] == "seqkernels"


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
