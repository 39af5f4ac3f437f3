"""A limit of processor time: what was not checked may build, or wait, for hours."""

import signal
from contextlib import contextmanager


class _Late(BaseException):
    """Raised wherever the block is; nothing that it runs through catches it."""


@contextmanager
def promptly(seconds: float = 20.0):
    """Fail where the block takes more of a processor than this; a busy machine does not matter."""

    def late(*_):
        raise _Late

    previous = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    except _Late:
        # Without the place, which may be in code whose text pytest cannot show.
        raise AssertionError(f"it takes more than {seconds:g} seconds") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
