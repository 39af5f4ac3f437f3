"""Cells that the package does not have, on the emulator: kernels move what a cell declares.

Between them the cells of tests/cells have parameters, more than two states, states that only one of
the passes reads, and values that are saved beside them.
"""

from itertools import product

import pytest
import torch
from emulated_ops import TOYS
from joined import check_directions, check_layers
from parity import MATHS, Case, actual, check_gradients, check_sequence, inputs_of, recurrent_math
from recording import recorded
from steps import SPECS, added

from seqkernels import reference
from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("headers")

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OPTIONS = {
    "T1-N1-H1": Case(1, 1, 1),
    "T4-N3-H37": Case(4, 3, 37),
    "T3-N9-H40": Case(3, 9, 40),
    "no-bias": Case(3, 2, 24, bias=False),
    "reverse": Case(4, 3, 40, reverse=True),
    "lengths": Case(6, 5, 40, lengths=(3, 6, 0, 5, 2)),
    "reset-lengths-reverse": Case(6, 4, 38, lengths=(3, 5, 1, 4), reset=True, reverse=True),
    "packed": Case(4, 5, 37, batch_sizes=(5, 3, 3, 1)),
    "packed-reverse": Case(4, 5, 40, batch_sizes=(5, 3, 3, 1), reverse=True),
}
# A block is kept to 16 units, so that small layers are cut up and have something to exchange.
EXCHANGES = {
    "cluster": {"max_cluster": 8, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}


@pytest.fixture(autouse=True, scope="module")
def toys():
    with added():
        yield


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors are full of NaN and nothing may touch what lies behind them."""
    with TOYS.guarded():
        yield
    TOYS.check_memory()


@pytest.fixture
def math(request):
    """(dtype, tf32) of a number format, with torch's switch for recurrent layers set to it."""
    with recurrent_math(request.param) as found:
        yield found


def pair(name, *schedule, **device):
    """A forward op and its backward."""
    found = TOYS.ops(*schedule, **device)
    return getattr(found, name).default, getattr(found, f"{name}_backward").default


def directions(cell, case, math, *schedule, **device):
    functions = pair(f"{cell}_directions_persistent", *schedule, **device)
    check_directions(cell, case, math[0], *functions, tf32=math[1])


def layers(cell, case, math, *schedule, **device):
    run, run_back = pair(f"{cell}_layers_persistent", *schedule, **device)
    check_layers(cell, case, math[0], run, tf32=math[1], run_back=run_back)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [5, 12])
def test_cell(hidden_size, dtype):
    """Of these cells one is an op of its own: a sequence of one step, whose product is zero."""
    assert [name for name in SPECS if CELLS[name].pointwise] == ["slstm"]
    assert not hasattr(TOYS.ops(), "leaky_rnn_cell")
    (run, back), (sequence, sequence_back) = pair("slstm_cell"), pair("slstm_sequence")
    (gates_x, weight_hh, _, h, c), _ = inputs_of("slstm", Case(1, 3, hidden_size), dtype)
    weight_hh.zero_()
    nothing = [None, None, None, False]
    output, h_n, c_n, c_sequence, saved = sequence(gates_x, weight_hh, None, h, c, *nothing, True)
    found = run(gates_x[0], torch.zeros_like(gates_x[0]), h, c, True)
    assert all(map(torch.equal, found, (h_n, c_n, saved[0])))
    given = torch.randn_like(output), None, None, torch.randn_like(c_sequence)
    results = output, c_sequence, saved
    grads = sequence_back(*given, weight_hh, None, h, c, *results, *nothing)
    own = back(given[0][0], given[3][0], h, c, *found)
    assert torch.equal(own[0], grads[0][0])
    assert own[1].numel() == grads[1].numel() == 0
    assert torch.equal(own[2], grads[2])
    assert torch.equal(own[3], grads[3])


@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", SPECS)
def test_stepwise(cell, case):
    for dtype in DTYPES:
        check_sequence(cell, case, dtype, *pair(f"{cell}_sequence"))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", SPECS)
def test_stepwise_gradcheck(cell, reverse):
    """The other kernels have no float64: there the tolerance rule stands for all gradients."""
    check_gradients(cell, Case(3, 2, 3, reverse=reverse), *pair(f"{cell}_sequence"))


@pytest.mark.pairs("cell", "math")
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("cell", SPECS)
def test_persistent(cell, math, case, exchange):
    functions = pair(f"{cell}_sequence_persistent", **EXCHANGES[exchange])
    check_sequence(cell, case, math[0], *functions, tf32=math[1])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("cell", SPECS)
def test_these_tests_exchange(cell, exchange):
    functions = pair(f"{cell}_sequence_persistent", **EXCHANGES[exchange])
    values, layout = inputs_of(cell, OPTIONS["T4-N3-H37"], torch.bfloat16)
    with recorded(TOYS.library()) as launches:
        actual(cell, values, layout, *functions)
    persistent = [x for x in launches if "persistent_kernel" in x.kernel]
    assert len(persistent) == 3  # forward, backward, and once without saving
    for launch in persistent:
        blocks, cluster, cooperative = (launch.numbers[i] for i in (0, 7, 8))
        assert blocks > 1
        assert (cluster > 1, bool(cooperative)) == (exchange == "cluster", exchange == "L2")


# In layers above the first slstm may have to choose between two gates that are nearly equal: under
# rounding it would choose another.
JOINED = [
    pytest.param(check, cell, math, id=f"{check.__name__}-{cell}-{math}")
    for check, cell, math in product((directions, layers), SPECS, MATHS)
    if (check, cell) != (layers, "slstm") or math == "float32"
]
# How rows lie is not the cell's affair: test_emulated_joined.py goes through all of it.
WIDE = {name: OPTIONS[name] for name in ("T4-N3-H37", "lengths", "reset-lengths-reverse", "packed")}


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("case", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("check, cell, math", JOINED, indirect=["math"])
def test_joined(check, cell, math, case, exchange):
    check(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.exhaustive
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("check", [directions, layers])
@pytest.mark.parametrize("cell, schedule", [("slstm", "shuffled"), ("scaled_gru", "depth first")])
def test_schedules(cell, schedule, check, exchange):
    """In which order threads run is not the cell's affair either: those that exchange most."""
    with recurrent_math("float32") as math:
        check(cell, Case(5, 9, 72), math, schedule, **EXCHANGES[exchange])


def test_greedy_decoding():
    """Cells whose step needs gates and state alone decode, with all their states."""
    assert not hasattr(TOYS.ops(), "peephole_lstm_greedy")
    layers, rows, hidden, words = 2, 3, 10, 21
    sizes = [(words, 6)] + [(4 * hidden, n) for n in (6, hidden, hidden, hidden)]
    sizes += [(words, hidden), (layers, rows, hidden), (layers, rows, 3 * hidden)]
    embedding, ih_0, ih_1, hh_0, hh_1, projection, h, c = (torch.randn(s) for s in sizes)
    c[..., hidden : 2 * hidden].abs_().add_(1)  # what it divides by
    start = torch.tensor([0, 5, 20])
    weights = embedding, [ih_0, ih_1], [hh_0, hh_1], [], [], projection, None
    found = TOYS.ops().slstm_greedy(*weights, h, c, start, 4, -1, 0, False)

    states = [(h[i].double(), *c[i].double().chunk(3, -1)) for i in range(layers)]
    chosen, token = [], start
    for _ in range(4):
        x = embedding[token].double()
        for i in range(layers):
            x, recurrent = x @ weights[1][i].double().t(), states[i][0] @ weights[2][i].double().t()
            states[i] = reference.cell("slstm", x, recurrent, states[i])
            x = states[i][0]
        token = (x @ projection.double().t()).argmax(-1)
        chosen.append(token)
    assert torch.equal(found[0], torch.stack(chosen, 1))
    h_n = torch.stack([state[0] for state in states])
    c_n = torch.stack([torch.cat(state[1:], -1) for state in states])
    torch.testing.assert_close(found[3].double(), h_n, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[4].double(), c_n, rtol=1e-4, atol=1e-4)


def test_refusals_say_why():
    gates_x, weight_hh, h = torch.randn(2, 3, 4), torch.randn(4, 4), torch.randn(3, 4)
    nothing = [None, None, None, False, True]
    for name in ("leaky_rnn_sequence", "leaky_rnn_sequence_persistent"):
        forward, _ = pair(name)
        with pytest.raises(RuntimeError, match="bias_hh is missing, which holds the cell's param"):
            forward(gates_x, weight_hh, None, h, None, *nothing)
        with pytest.raises(RuntimeError, match=r"bias_hh of size \[8\], got \[4\]"):
            forward(gates_x, weight_hh, torch.randn(4), h, None, *nothing)
        with pytest.raises(RuntimeError, match="this cell has no c_0"):
            forward(gates_x, weight_hh, torch.randn(8), h, h, *nothing)
    forward, _ = pair("slstm_sequence")
    with pytest.raises(RuntimeError, match=r"c_0 of size \[3, 12\], got \[3, 4\]"):
        forward(torch.randn(2, 3, 16), torch.randn(16, 4), None, h, h, *nothing)
