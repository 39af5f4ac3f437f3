"""The progress of a run: a line for each case in a file, one that moves on a terminal."""

import io
import sys

import pytest

from bench.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_every_step_is_named_and_counted(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    progress = Progress(3)
    for name in ("first", "second", "third"):
        progress.step(name)
    progress.close()
    lines = sys.stderr.getvalue().replace("\r", "\n").splitlines()
    for count, name in enumerate(("first", "second", "third")):
        assert any(f"{count}/3" in line and name in line for line in lines)
    if stream is Terminal:
        assert not lines[-1].strip(), "the bar is left on the terminal"
    else:
        assert len(lines) == 3
