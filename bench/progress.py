"""A progress bar on stderr: one line that moves on a terminal, one line per case elsewhere."""

import sys
import time

_WIDTH = 24


class Progress:
    """Counts steps towards a known total.

    Args:
        total: steps to come.
    """

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Say what is worked on now; the step before is done."""
        elapsed = time.monotonic() - self._start
        left = elapsed / self._done * (self._total - self._done) if self._done else 0.0
        filled = _WIDTH * self._done // max(1, self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        line = f"[{bar}] {self._done}/{self._total} {elapsed:4.0f}s, {left:4.0f}s left  {text}"
        if self._terminal:
            print(f"\r\x1b[2K{line[:110]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        self._done += 1

    def close(self) -> None:
        """Leave the line."""
        if self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
