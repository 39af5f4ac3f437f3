"""What parity of one call cannot show: long runs repeat to the bit, streams, a CUDA graph.

A race in an exchange shows as a difference between runs. Grids whose blocks wait for each other
must not deadlock, neither beside one another nor beside other work.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from .machine import Machine

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from parity import Case, inputs_of  # noqa: E402

FILE = "repeat.jsonl"
# An LSTM in float16, T = 1000, N = 16; tiny: a block has at most 16 units.
HIDDEN = {"cluster": 512, "L2": 768}
TINY = {"cluster": {"max_cluster": 8, "max_units": 16}, "L2": {"max_cluster": 1, "max_units": 16}}
LENGTHS = (3, 6, 1, 9, 2, 6, 4, 0) * 5


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Repeats in both exchanges, then streams and a graph."""
    for exchange in HIDDEN:
        yield f"repeats, {exchange}", partial(repeats, machine, exchange)
    yield "two streams of unequal priority", partial(on_a_gpu, machine, streams)
    yield "first call inside a capture", partial(on_a_gpu, machine, capture)


def on_a_gpu(machine: Machine, case: Callable[[Machine], dict]) -> dict:
    """What the emulator has no counterpart of says so in the rehearsal."""
    return {"note": "needs a GPU"} if machine.rehearsal else case(machine)


def both(machine: Machine, cell: str, values: list, layout: list) -> list[torch.Tensor]:
    """Every result of a forward, and every gradient for a loss of its outputs and states."""
    forward, backward = (machine.op(f"{cell}_sequence_persistent{e}") for e in ("", "_backward"))
    output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
    kept = (*values[1:], output, c_sequence, saved, *layout)
    grads = backward(output, h_n, c_n if c_n.numel() else None, None, *kept)
    return [output, h_n, c_n, c_sequence, *grads]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], what: str) -> None:
    """To the bit; NaN is no number to repeat."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert other.isfinite().all(), f"result {number} is not finite"
        different = int((one != other).sum())
        assert not different, f"{what}: {different} of {one.numel()} numbers of {number} differ"


def repeats(machine: Machine, exchange: str) -> dict:
    """Twenty runs, forward and backward, after the first."""
    count = machine.full_or_tiny(20, 3)
    case = machine.full_or_tiny(Case(1000, 16, HIDDEN[exchange]), Case(6, 3, 72))
    with machine.limits(**machine.full_or_tiny({}, TINY[exchange])):
        for backward in (False, True):
            plan = machine.plan("lstm", "float16", backward, case.batch, case.hidden_size)
            assert plan.get("exchange") == exchange, plan
        values, layout = inputs_of("lstm", case, torch.float16, machine.device)
        first = both(machine, "lstm", values, layout)
        for number in range(count):
            assert_equal(both(machine, "lstm", values, layout), first, f"run {number + 2}")
    return {"runs": count + 1, "steps": case.steps}


def streams(machine: Machine) -> dict:
    """Grids of 96 blocks on two streams of unequal priority, beside products that fill the chip."""
    values, layout = inputs_of("lstm", Case(200, 16, 768), torch.float16, machine.device)
    expected = both(machine, "lstm", values, layout)
    filler = torch.randn(4096, 4096, device=machine.device).half()
    torch.cuda.synchronize()
    low, high = (torch.cuda.Stream(priority=priority) for priority in (0, -1))
    other = torch.cuda.Stream()
    found = []
    for _ in range(10):
        with torch.cuda.stream(other):
            filler @ filler
        for stream in (low, high):
            with torch.cuda.stream(stream):
                found.append(both(machine, "lstm", values, layout))
    torch.cuda.synchronize()
    for number, results in enumerate(found):
        assert_equal(results, expected, f"launch {number}")
    return {"launches": 2 * len(found)}


def capture(machine: Machine) -> dict:
    """A graph of forward and backward with lengths, whose first call ever is inside the capture.

    No other case of a worker calls this cell in this format, so its kernels are loaded there, also
    by the thread of the backward.
    """
    case = Case(9, 40, 256, lengths=LENGTHS)
    values, layout = inputs_of("rnn_relu", case, torch.bfloat16, machine.device)
    leaves = [None if v is None else v.requires_grad_() for v in values]
    wanted = [leaf for leaf in leaves if leaf is not None]

    def run(cell: str) -> list[torch.Tensor]:
        output, h_n, *_ = machine.op(f"{cell}_sequence_persistent")(*leaves, *layout, True)
        grads = torch.autograd.grad([output, h_n], wanted, [output.detach(), h_n.detach()])
        return [output.detach(), h_n.detach(), *grads]

    run("rnn_tanh")  # torch's own kernels and handles, which are not under test
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run("rnn_relu")
    # A graph takes lengths as they are at its replay.
    layout[0].copy_(layout[0].roll(11))
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert_equal(captured, run("rnn_relu"), "the graph")
    return {"replays": 3}
