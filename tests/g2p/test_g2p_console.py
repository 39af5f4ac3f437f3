"""The progress of a training as it is printed."""

import io
import sys

import pytest

from seqkernels.g2p.console import ProgressBar
from seqkernels.g2p.train import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(quiet=False):
    bar = ProgressBar(5.0, quiet=quiet)
    bar.bar.mininterval = 0.0
    progress = Progress(seconds=60.0, epochs=1.5, tokens=3000, busy_seconds=1.5, loss=[(1.0, 0.25)])
    bar(progress, 0.2)
    progress.dev.append((60.0, 40.25, 10.0))
    bar(progress, 0.5)
    bar(progress, 1.2)
    bar.clear()


SCORE = "  1.0 min  epoch   1.5  loss 0.250  dev WER 40.2 %, PER 10.0 %\n"


def test_a_line_at_each_score_and_a_bar_that_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    show()
    assert capsys.readouterr().out == SCORE
    drawn = sys.stderr.getvalue()
    for text in ("20%", "1.0 of 5 min", "2.5 of 5 min", "5.0 of 5 min", "2,000 tokens/s"):
        assert text in drawn, text
    assert not drawn.split("\r")[-1].strip(), "the bar is left on the terminal"


def test_no_bar_elsewhere_than_on_a_terminal(capsys):
    show()
    assert capsys.readouterr() == (SCORE, "")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_prints_nothing(stream, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream())
    show(quiet=True)
    assert capsys.readouterr().out == sys.stderr.getvalue() == ""
