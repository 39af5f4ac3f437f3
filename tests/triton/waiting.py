"""Kernels that wait for ever, under SEQKERNELS_SPIN_LIMIT, in the interpreter."""

import contextlib
import io
import re

import interpreter  # noqa: F401  isort: skip  (sets TRITON_INTERPRET)
import torch
from triton.runtime.interpreter import InterpreterError

from seqkernels.cells import CELLS
from seqkernels.triton import launch
from seqkernels.triton.plan import Plan

PLAN = Plan("persistent", 16, 16, 16, split=2)


def stuck():
    """Programs one after another: the first waits for others that have not begun, and gives up."""
    hidden_size = 37
    for cell in ("lstm", "gru_reset_before"):
        spec = CELLS[cell]
        h = torch.randn(3, hidden_size)
        c = h if spec.states > 1 else None
        weight = torch.randn(spec.gates * hidden_size, hidden_size)
        gates, saved = (torch.randn(2, 3, n * hidden_size) for n in (spec.gates, spec.saved))
        output = torch.randn(2, 3, hidden_size)
        layout = (None, None, None, False)
        forward = (gates, weight, None, h, c, *layout, True)
        _gives_up(launch.forward, cell, forward, "persistent forward")
        backward = (output, None, None, None, weight, None, h, c, output, output, saved, *layout)
        _gives_up(launch.backward, cell, backward, "persistent backward")


def _gives_up(function, cell, arguments, name):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            function(cell, *arguments, plan=PLAN)
    except InterpreterError as error:
        assert f"{name}: gave up waiting for its group" in str(error)
    else:
        raise AssertionError(f"{name} did not wait")
    # Group 0 waits for its three members, of which one has arrived.
    text = printed.getvalue()
    assert text.count(f"{name}: group, target, arrived") == 3, text
    assert re.findall(r"arrived:? +\[?(\d+)", text) == ["0", "3", "1"], text
