"""Ctrl-C: a flag while a model is trained, an exception elsewhere."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_once(act: Callable[[], None]) -> Iterator[None]:
    """Answer the first Ctrl-C inside with `act`; a second does what it would do outside.

    Nothing changes where signals are not this thread's, or where Ctrl-C is ignored.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return

    def note(number, frame):
        signal.signal(signal.SIGINT, previous)
        act()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def stop() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt
