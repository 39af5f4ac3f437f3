"""Several recurrences in one launch on the emulator: both directions of a layer, stacked layers."""

from itertools import product

import pytest
import torch
from emulated_ops import check_memory, guarded, library, ops
from emulator import SCHEDULES, build
from joined import Both, check_directions, check_layers, layer_inputs, layers_actual
from parity import MATHS, Case, inputs_of, recurrent_math
from recording import recorded, replay
from units import PERSISTENT

from seqkernels import _extension
from seqkernels.cells import CELLS

pytestmark = pytest.mark.needs("headers")

# A block is kept to 16 units, so that small layers are cut up and have something to exchange.
EXCHANGES = {
    "cluster": {"max_cluster": 8, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}
SIZES = {
    "T1-N1-H1": Case(1, 1, 1),
    "T5-N3-H37": Case(5, 3, 37),
    "T3-N13-H100": Case(3, 13, 100),
    "T4-N19-H40": Case(4, 19, 40),
}
# The kernels are those of one direction: every cell once, two cells in every number format.
KINDS = [(cell, "bfloat16") for cell in CELLS]
KINDS += [(cell, math) for cell in ("lstm", "gru") for math in MATHS if math != "bfloat16"]


# Every kind in every size with both exchanges; the smallest is one block and exchanges nothing.
GRID = [
    pytest.param(cell, math, case, exchange, id=f"{cell}-{math}-{size}-{exchange}")
    for cell, math in KINDS
    for size, case in SIZES.items()
    for exchange in (EXCHANGES if case.hidden_size > 1 else ["cluster"])
]


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
    with recurrent_math(request.param) as found:
        yield found


def both_ops(cell, schedule="round robin", **device):
    """The forward and the backward op of both directions."""
    found = ops(schedule, **device)
    name = f"{cell}_directions_persistent"
    return getattr(found, name).default, getattr(found, f"{name}_backward").default


def layers_op(cell, schedule="round robin", **device):
    return getattr(ops(schedule, **device), f"{cell}_layers_persistent").default


def layers_back_op(cell, schedule="round robin", **device):
    return getattr(ops(schedule, **device), f"{cell}_layers_persistent_backward").default


def directions(cell, case, math, schedule="round robin", **device):
    check_directions(cell, case, math[0], *both_ops(cell, schedule, **device), tf32=math[1])


def layers(cell, case, math, schedule="round robin", count=3, **device):
    run, back = (f(cell, schedule, **device) for f in (layers_op, layers_back_op))
    check_layers(cell, case, math[0], run, tf32=math[1], count=count, run_back=back)


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS)
def test_these_tests_exchange(cell, math, exchange):
    """Every case wider than a block really takes the exchange it is there for."""
    for case in (*SIZES.values(), *OPTIONS.values()):
        for backward, parts in product((False, True), ("directions", "layers")):
            sizes = (case.batch, case.hidden_size)
            count = {parts: 2 if parts == "directions" else 3}
            found = _extension.C.plan(cell, math, backward, *sizes, **count, **EXCHANGES[exchange])
            if found["refusal"].startswith("launches of their own"):
                continue
            wanted = exchange if case.hidden_size > 16 else "none"
            # The widest layers may be better off with more blocks than a cluster has.
            if (parts, case.hidden_size) != ("layers", 100):
                assert found["exchange"] == wanted


@pytest.mark.parametrize("cell, math, case, exchange", GRID, indirect=["math"])
def test_directions(cell, case, math, exchange):
    directions(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.parametrize("cell, math, case, exchange", GRID, indirect=["math"])
def test_layers(cell, case, math, exchange):
    layers(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.parametrize("math", ["float32"], indirect=True)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("check", [directions, layers])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_options(cell, check, case, math):
    for device in EXCHANGES.values():
        check(cell, case, math, **device)


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("check", [directions, layers])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_schedules(cell, check, exchange, schedule):
    """Other orders of the threads; the first is that of all other tests."""
    case = Case(5, 9, 72)
    check(cell, case, MATHS["bfloat16"], schedule=schedule, **EXCHANGES[exchange])


def test_one_block_a_layer_and_the_most_layers():
    """Layers that exchange nothing within themselves still wait for the one below."""
    for schedule in SCHEDULES:
        layers("gru", Case(4, 9, 24), MATHS["float16"], count=8, schedule=schedule)


@pytest.mark.exhaustive
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers(sanitizer, exchange):
    # One slice: the race checker holds no more than 8128 threads.
    case = Case(3, 5, 40, lengths=(3, 1, 2, 3, 1))
    run = layers_op("lstm", **EXCHANGES[exchange])
    inputs, layout = layer_inputs("lstm", case, torch.bfloat16, 2)
    values, options = inputs_of("lstm", case, torch.bfloat16)
    with recorded(library()) as launches:
        results = run(*inputs, *layout, True)
        layers_actual(
            "lstm", inputs, layout, results, layers_back_op("lstm", **EXCHANGES[exchange])
        )
        both = Both(*both_ops("lstm", **EXCHANGES[exchange]))
        output, _, _, c_sequence, saved = both.forward(*values, *options, True)
        both.backward(output, values[3], values[4], c_sequence, *options)
    program = build([u for u in PERSISTENT if "bfloat16" in u.variant], sanitizer=sanitizer)
    persistent = [x for x in launches if "persistent_kernel" in x.kernel]
    assert len(persistent) == 4
    for launch in persistent:
        replay(program, launch).check()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_bit_equal_reruns(exchange):
    inputs, layout = layer_inputs("lstm", Case(4, 9, 40), torch.float16, 3)
    found = []
    for schedule in SCHEDULES[:2]:
        run, back = (
            f("lstm", schedule, **EXCHANGES[exchange]) for f in (layers_op, layers_back_op)
        )
        results = run(*inputs, *layout, True)
        grads = layers_actual("lstm", inputs, layout, results, back)
        found.append([*results, *grads.values()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("steps, batch", [(0, 2), (2, 0)])
def test_without_work(steps, batch):
    inputs, layout = layer_inputs("lstm", Case(1, batch, 3), torch.float32, 2)
    inputs[0] = torch.randn(steps, batch, 12)
    results = layers_op("lstm")(*inputs, *layout, True)
    assert results[0].shape == (2, steps, batch, 3)
    assert all(map(torch.equal, results[1:3], inputs[-2:]))
    # Without work the gradients of the states pass through.
    grads = [torch.randn(2, batch, 3) for _ in range(2)]
    output, _, _, c_sequence, saved = results
    weights = inputs[1], inputs[2], inputs[4]
    given = (None, *grads, None, *weights, *inputs[-2:], output, c_sequence, saved)
    found = layers_back_op("lstm")(*given, *layout)
    assert found[0].shape == (2, steps, batch, 12)
    assert all(map(torch.equal, found[2:], grads))


@pytest.mark.needs("cuda_build")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "cell, hidden, processors, kilobytes", [("lstm", 100, 24, 34), ("gru_reset_before", 72, 16, 19)]
)
def test_the_feed_in_pieces(cell, hidden, processors, kilobytes, schedule):
    """Gate gradients of the layer above that do not fit beside the weights come in pieces."""
    device = {"processors": processors, "shared_per_block": kilobytes << 10, "max_units": 16}
    device["max_cluster"] = 1
    plan = _extension.C.plan(cell, "float16", True, 5, hidden, layers=2, **device)
    assert plan["phases"][-1]["pieces"] > 1
    layers(cell, Case(3, 5, hidden), MATHS["float16"], schedule, 2, **device)


def test_refusals_say_why():
    inputs, layout = layer_inputs("lstm", Case(1, 2, 24), torch.float32, 3)
    with pytest.raises(RuntimeError, match="would not all be resident on 5"):
        layers_op("lstm", processors=5, max_units=8)(*inputs, *layout, True)
    with pytest.raises(RuntimeError, match="weights of all layers do not fit on chip"):
        layers_op("lstm", processors=9, shared_per_block=8 << 10)(*inputs, *layout, True)
    run, inputs[1] = layers_op("lstm"), inputs[1][:1]
    with pytest.raises(RuntimeError, match="expected 2 tensors weight_ih, got 1"):
        run(*inputs, *layout, True)
    inputs[-2] = inputs[-2][:2]
    with pytest.raises(RuntimeError, match=r"h_0 of size \[3, N, H\], got \[2, 2, 24\]"):
        run(*inputs, *layout, True)
    inputs[2] = inputs[2] * 4
    with pytest.raises(RuntimeError, match="1 to 8 tensors weight_hh, got 12"):
        run(*inputs, *layout, True)
    both, _ = both_ops("lstm")
    with pytest.raises(RuntimeError, match="expected 2 tensors weight_hh, got 12"):
        both(inputs[0], inputs[2], [], *inputs[-2:], *layout, True)
