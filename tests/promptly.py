"""A limit of processor time: what was not checked may build, or wait, for hours."""

import signal
from contextlib import contextmanager


@contextmanager
def promptly(seconds: float = 20.0):
    """Fail where the block takes more of a processor than this; a busy machine does not matter."""

    def late(*_):
        raise AssertionError(f"it takes more than {seconds:g} seconds")

    previous = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
