"""Persistent kernels on the emulator: every cell, number format and exchange, awkward sizes."""

import pytest
import torch
from emulated_ops import check_memory, guarded, library, ops
from emulator import SCHEDULES, build
from joined import check_directions
from parity import MATHS, Case, actual, check_sequence, inputs_of, recurrent_math
from recording import recorded, replay
from units import PERSISTENT

from seqkernels import _extension
from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("headers")

CASES = {
    "T1-N1-H1": Case(1, 1, 1),
    "T7-N3-H5": Case(7, 3, 5),
    "T3-N2-H100": Case(3, 2, 100),
    "T4-N19-H40": Case(4, 19, 40),
}
OPTIONS = {
    "reverse-no-bias": Case(4, 3, 40, reverse=True, bias=False),
    "lengths": Case(6, 11, 40, lengths=(3, 6, 1, 5, 2, 6, 4, 4, 2, 1, 2)),
    "lengths-reverse": Case(6, 5, 40, lengths=(3, 5, 1, 5, 0), reverse=True),
    "lengths-beyond-the-end": Case(3, 2, 24, lengths=(7, 2), reverse=True),
    "packed": Case(4, 9, 37, batch_sizes=(9, 3, 3, 1)),
    "packed-reverse": Case(4, 5, 40, batch_sizes=(5, 3, 3, 1), reverse=True),
    "reset": Case(6, 3, 38, reset=True),
    "reset-lengths-reverse": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True, reverse=True),
}
# The kernels of one number format, to be built again with a sanitizer.
SANITIZED = [unit for unit in PERSISTENT if "bfloat16" in unit.variant]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors are full of NaN and nothing may touch what lies behind them."""
    with guarded():
        yield
    check_memory()


# A block is kept to 16 units, so that small layers are cut up and have something to exchange.
EXCHANGES = {
    "cluster": {"max_cluster": 8, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}


@pytest.fixture
def math(request):
    """(dtype, tf32) of a number format, with torch's switch for recurrent layers set to it."""
    with recurrent_math(request.param) as found:
        yield found


def pair(cell, schedule="round robin", **device):
    """The forward and backward op."""
    found = ops(schedule, **device)
    return (
        getattr(found, f"{cell}_sequence_persistent").default,
        getattr(found, f"{cell}_sequence_persistent_backward").default,
    )


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS)
def test_these_tests_exchange(cell, math, exchange):
    """Every case wider than a block really takes the exchange it is there for, both ways."""
    for case in (*CASES.values(), *OPTIONS.values()):
        for backward in (False, True):
            batch, hidden = case.batch, case.hidden_size
            found = _extension.C.plan(cell, math, backward, batch, hidden, **EXCHANGES[exchange])
            assert found["exchange"] == (exchange if hidden > 16 else "none")


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("cell", CELLS)
def test_one_block(cell, exchange):
    """The widest blocks: several row tiles, and layers that fit in one block."""
    device = {**EXCHANGES[exchange], "max_units": 256}
    check_sequence(cell, Case(3, 9, 100), torch.bfloat16, *pair(cell, **device))


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, case, math, exchange):
    functions = pair(cell, **EXCHANGES[exchange])
    check_sequence(cell, case, math[0], *functions, tf32=math[1])


@pytest.mark.parametrize("math", ["float32"], indirect=True)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_options(cell, case, math):
    for device in EXCHANGES.values():
        check_sequence(cell, case, math[0], *pair(cell, **device))


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_schedules(cell, exchange, schedule):
    """Other orders of the threads; the first is that of all other tests."""
    functions = pair(cell, schedule, **EXCHANGES[exchange])
    check_sequence(cell, Case(4, 9, 72), torch.bfloat16, *functions)


@pytest.mark.parametrize("math", ["bfloat16", "tf32"], indirect=True)
def test_weights_beyond_the_registers(math):
    """Tiles that are read from shared memory every step: one block of a wide layer."""
    functions = pair("rnn_tanh", max_cluster=1, processors=4)
    check_sequence("rnn_tanh", Case(2, 3, 440), math[0], *functions, tf32=math[1])


def least_memory(cell, name, case):
    """The smallest shared memory, in steps of 1 KB, that both directions of a case have plans for.

    There the backward takes what it exchanges in pieces.
    """
    for size in range(2 << 10, 227 << 10, 1 << 10):
        device = {**EXCHANGES["L2"], "shared_per_block": size}
        plans = [
            _extension.C.plan(cell, name, backward, case.batch, case.hidden_size, **device)
            for backward in (False, True)
        ]
        if not any(p["refusal"] for p in plans):
            assert plans[1]["pieces"] > 1
            return device
    raise AssertionError("no plan at any size")


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("case", [Case(3, 13, 100), Case(4, 19, 72)], ids=["H100", "H72"])
@pytest.mark.parametrize("math", MATHS, indirect=True)
# A cell of one gate exchanges no more backward than forward.
@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if spec.gates > 1])
def test_gradients_in_pieces(cell, math, case, request):
    """Backwards whose blocks cannot hold the gate gradients of their whole group."""
    name = request.node.callspec.params["math"]
    functions = pair(cell, **least_memory(cell, name, case))
    check_sequence(cell, case, math[0], *functions, tf32=math[1])


@pytest.mark.needs("cuda_build")
def test_directions_in_pieces():
    case = Case(3, 9, 72)
    device = least_memory("gru", "bfloat16", case)
    found = ops(**device)
    both = found.gru_directions_persistent, found.gru_directions_persistent_backward
    check_directions("gru", case, torch.bfloat16, *(op.default for op in both))


@pytest.mark.exhaustive
@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers_of_pieces(sanitizer):
    case = Case(3, 9, 72, lengths=(3, 1) * 4 + (2,))
    functions = pair("lstm", **least_memory("lstm", "bfloat16", case))
    values, layout = inputs_of("lstm", case, torch.bfloat16)
    with recorded(library()) as launches:
        actual("lstm", values, layout, *functions)
    program = build(SANITIZED, sanitizer=sanitizer)
    (backward,) = (x for x in launches if "Backward" in x.kernel)
    replay(program, backward).check()


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_pieces_on_other_schedules(cell, schedule):
    case = Case(5, 9, 72, lengths=(5, 2, 3) * 3)
    device = least_memory(cell, "bfloat16", case)
    check_sequence(cell, case, torch.bfloat16, *pair(cell, schedule, **device))


@pytest.mark.exhaustive
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers(sanitizer, exchange):
    functions = pair("gru_reset_before", **EXCHANGES[exchange])
    values, layout = inputs_of(
        "gru_reset_before", Case(3, 9, 40, lengths=(3, 1) * 4 + (2,)), torch.bfloat16
    )
    with recorded(library()) as launches:
        actual("gru_reset_before", values, layout, *functions)
    program = build(SANITIZED, sanitizer=sanitizer)
    persistent = [x for x in launches if "persistent_kernel" in x.kernel]
    assert len(persistent) == 3
    for launch in persistent[:2]:
        replay(program, launch).check()


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("cell", CELLS)
def test_bit_equal_reruns(cell, exchange):
    values, layout = inputs_of(cell, Case(3, 9, 40), torch.float16)
    first, second = (
        actual(cell, values, layout, *pair(cell, schedule, **EXCHANGES[exchange]))
        for schedule in SCHEDULES[:2]
    )
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one if one[name].numel())


@pytest.mark.parametrize("steps, batch", [(0, 2), (2, 0)])
def test_without_work(steps, batch):
    forward, backward = pair("lstm")
    state, weight_hh = torch.randn(batch, 3), torch.randn(12, 3)
    nothing = [None, None, None, False]
    results = forward(torch.randn(steps, batch, 12), weight_hh, None, state, state, *nothing, True)
    assert torch.equal(results[1], state)
    output, _, _, c_sequence, saved = results
    grads = backward(
        *(None, state, state, None, weight_hh, None, state, state),
        *(output, c_sequence, saved, *nothing),
    )
    assert torch.equal(grads[2], state)
    assert torch.equal(grads[3], state)


def test_refusals_say_why():
    forward, _ = pair("lstm", processors=1000, shared_per_block=8 << 10)
    h = torch.randn(4, 512).half()
    call = (torch.randn(1, 4, 2048).half(), torch.randn(2048, 512).half(), None, h, h)
    with pytest.raises(RuntimeError, match="do not fit on chip"):
        forward(*call, None, None, None, False, True)
    forward, _ = pair("lstm", processors=2)
    with pytest.raises(RuntimeError, match="would not all be resident on 2"):
        forward(*call, None, None, None, False, True)
    with pytest.raises(RuntimeError, match="no persistent kernel for float64"):
        forward(*(None if x is None else x.double() for x in call), None, None, None, False, True)
