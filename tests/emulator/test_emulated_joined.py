"""Several recurrences in one launch on the emulator: both directions of a layer, stacked layers."""

import pytest
import torch
from emulated_ops import check_memory, guarded, library, ops
from emulator import SCHEDULES, build
from parity import Case, check_sequence, inputs_of
from recording import recorded, replay
from tolerance import assert_parity
from torch.nn import functional as F

from seqkernels import _extension
from seqkernels.cells import CELLS
from seqkernels.ops.sequence import reference_sequence

MATHS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}
# A block is kept to 16 units, so that small layers are cut up and have something to exchange.
EXCHANGES = {
    "cluster": {"max_cluster": 4, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}
SIZES = {
    "T1-N1-H1": Case(1, 1, 1),
    "T5-N3-H37": Case(5, 3, 37),
    "T3-N13-H100": Case(3, 13, 100),
    "T4-N19-H40": Case(4, 19, 40),
}
OPTIONS = {
    "no-bias": Case(4, 3, 40, bias=False),
    "lengths": Case(6, 11, 40, lengths=(3, 6, 1, 5, 2, 6, 4, 4, 2, 0, 2)),
    "packed": Case(4, 9, 37, batch_sizes=(9, 3, 3, 1)),
    "reset-lengths": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True),
}


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors are full of NaN and nothing may touch what lies behind them."""
    with guarded():
        yield
    check_memory()


@pytest.fixture
def math(request):
    """(dtype, tf32) of a number format, with torch's switch for recurrent layers set to it."""
    dtype, tf32 = MATHS[request.param]
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if tf32 else "ieee"
    yield dtype, tf32
    rnn.fp32_precision = before


class Both:
    """The ops of both directions as those of one: the other direction runs on other numbers."""

    def __init__(self, cell: str, schedule: str = "round robin", **device):
        found = ops(schedule, **device)
        self.run = getattr(found, f"{cell}_directions_persistent").default
        self.run_back = getattr(found, f"{cell}_directions_persistent_backward").default

    def side_by_side(self, x, reverse, dim):
        other = torch.randn(x.shape).to(x.dtype)
        return torch.cat((other, x) if reverse else (x, other), dim)

    def half(self, results, reverse):
        return [r.chunk(2, -1)[reverse] if r.numel() else r for r in results]

    # fmt: off
    def forward(self, gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes, reset, reverse,
                save):
        # fmt: on
        torch.manual_seed(3)
        both = self.weights = [torch.randn_like(weight_hh) * 0.1, weight_hh][:: 1 if reverse else -1]
        biases = [] if bias_hh is None else [bias_hh, bias_hh]
        self.states = [
            None if s is None else self.side_by_side(s.unsqueeze(0), reverse, 0) for s in (h_0, c_0)
        ]
        gates_x = self.side_by_side(gates_x, reverse, -1)
        results = self.run(
            gates_x, both, biases, *self.states, lengths, batch_sizes, reset, save
        )
        output, h_n, c_n, c_sequence, saved = results
        if save:
            self.saved = (output, c_sequence, saved)
        h_n, c_n = (r[int(reverse)] if r.numel() else r for r in (h_n, c_n))
        output, c_sequence, saved = self.half((output, c_sequence, saved), reverse)
        return output, h_n, c_n, c_sequence, saved

    # fmt: off
    def backward(self, grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, h_0, c_0, output,
                 c_sequence, saved, lengths, batch_sizes, reset, reverse):
        # fmt: on
        steps = [g if g is None else self.side_by_side(g, reverse, -1)
                 for g in (grad_output, grad_c_sequence)]
        states = [g if g is None else self.side_by_side(g.unsqueeze(0), reverse, 0)
                  for g in (grad_h_n, grad_c_n)]
        grad_x, grad_h, grad_h_0, grad_c_0 = self.run_back(
            steps[0], *states, steps[1], self.weights, *self.states, *self.saved, lengths,
            batch_sizes, reset,
        )
        grad_x, grad_h = self.half((grad_x, grad_h), reverse)
        return grad_x, grad_h, grad_h_0[int(reverse)], grad_c_0[int(reverse)] if c_0 is not None else grad_c_0


def check_directions(cell, case, math, schedule="round robin", **device):
    for reverse in (False, True):
        both = Both(cell, schedule, **device)
        case = Case(**{**vars(case), "reverse": reverse})
        check_sequence(cell, case, math[0], both.forward, both.backward, tf32=math[1])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_directions(cell, case, math, exchange):
    check_directions(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.parametrize("math", ["float32"], indirect=True)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_options_of_directions(cell, case, math):
    for device in EXCHANGES.values():
        check_directions(cell, case, math, **device)
