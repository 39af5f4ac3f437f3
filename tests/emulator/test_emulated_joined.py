"""Several recurrences in one launch on the emulator: both directions of a layer, stacked layers."""

import contextlib
from dataclasses import replace

import pytest
import torch
from emulated_ops import check_memory, guarded, library, ops
from emulator import SCHEDULES, build
from parity import Case, check_sequence, inputs_of, tf32_products
from recording import recorded, replay
from tolerance import assert_parity

from seqkernels import _extension, reference
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

    def forward(self, gates_x, weight_hh, bias_hh, *rest):
        """The sequence op's forward, as `check_sequence` calls it."""
        *states, lengths, batch_sizes, reset, reverse, save = rest
        torch.manual_seed(3)
        weights = [weight_hh, torch.randn_like(weight_hh) * 0.1]
        self.weights = weights[::-1] if reverse else weights
        biases = [] if bias_hh is None else [bias_hh, bias_hh]
        self.states = [_joined(s, reverse) for s in states]
        gates_x = _side_by_side(gates_x, reverse)
        arguments = (gates_x, self.weights, biases, *self.states, lengths, batch_sizes, reset)
        output, h_n, c_n, c_sequence, saved = self.run(*arguments, save)
        if save:
            self.saved = (output, c_sequence, saved)
        h_n, c_n = (_part(r, reverse) for r in (h_n, c_n))
        output, c_sequence, saved = (_half(r, reverse) for r in (output, c_sequence, saved))
        return output, h_n, c_n, c_sequence, saved

    def backward(self, grad_output, grad_h_n, grad_c_n, grad_c_sequence, *rest):
        """The sequence op's backward; what the forward gave is taken from its last call."""
        lengths, batch_sizes, reset, reverse = rest[-4:]
        grad_x, grad_h, grad_h_0, grad_c_0 = self.run_back(
            _side_by_side(grad_output, reverse),
            _joined(grad_h_n, reverse),
            _joined(grad_c_n, reverse),
            _side_by_side(grad_c_sequence, reverse),
            self.weights,
            *self.states,
            *self.saved,
            lengths,
            batch_sizes,
            reset,
        )
        halves = [_half(g, reverse) for g in (grad_x, grad_h)]
        return *halves, _part(grad_h_0, reverse), _part(grad_c_0, reverse)


def _side_by_side(x, reverse):
    if x is None:
        return None
    other = torch.randn(x.shape).to(x.dtype)
    return torch.cat((other, x) if reverse else (x, other), -1)


def _joined(x, reverse):
    if x is None:
        return None
    other = torch.randn(x.shape).to(x.dtype)
    return torch.stack((other, x) if reverse else (x, other))


def _half(x, reverse):
    return x.chunk(2, -1)[int(reverse)] if x.numel() else x


def _part(x, reverse):
    return x[int(reverse)] if x.numel() else x


def check_directions(cell, case, math, schedule="round robin", **device):
    for reverse in (False, True):
        both = Both(cell, schedule, **device)
        own = replace(case, reverse=reverse)
        check_sequence(cell, own, math[0], both.forward, both.backward, tf32=math[1])


def layer_inputs(cell, case, dtype, count):
    """Inputs of `count` layers: gates_x of the first, lists of weights, stacked states, layout."""
    spec, h = CELLS[cell], case.hidden_size
    drawn = [inputs_of(cell, case, dtype) for _ in range(count)]
    gates_x, weight_hh, bias_hh, *states = zip(*(values for values, _ in drawn), strict=True)
    weight_ih = [torch.randn(spec.gates * h, h) * h**-0.5 for _ in range(count - 1)]
    bias_ih = [torch.randn(spec.gates * h) for _ in range(count - 1)]
    if cell == "rnn_relu":  # every layer away from the kink, and none larger than the one below
        weight_ih = [w.abs() * h**-0.5 for w in weight_ih]
        bias_ih = [b.abs() + 0.5 for b in bias_ih]
    weight_ih, bias_ih = ([t.to(dtype) for t in ts] for ts in (weight_ih, bias_ih))
    if not case.bias:
        bias_ih, bias_hh = [], []
    states = [None if s[0] is None else torch.stack(s) for s in states]
    inputs = [gates_x[0], weight_ih, list(weight_hh), bias_ih, list(bias_hh), *states]
    return inputs, drawn[0][1][:3]


def layers_expected(cell, inputs, layout, dtype, tf32=False):
    """The reference's layers one after the other: results as the op gives them, by name."""
    spec = CELLS[cell]
    gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0 = (
        [t.to(dtype) for t in v] if isinstance(v, list) else v if v is None else v.to(dtype)
        for v in inputs
    )
    outputs, finals, c_sequences = [], [], []
    with tf32_products() if tf32 else contextlib.nullcontext():
        for i, weight in enumerate(weight_hh):
            if i:
                gates_x = reference.F.linear(outputs[-1], weight_ih[i - 1])
                gates_x = gates_x + bias_ih[i - 1] if bias_ih else gates_x
            state = [s[i] for s in (h_0, c_0) if s is not None]
            output, final, c_sequence = reference_sequence(
                spec, gates_x, weight, bias_hh[i] if bias_hh else None, state, *layout, False
            )
            outputs.append(output)
            finals.append(final)
            c_sequences.append(c_sequence)
    found = {"output": torch.stack(outputs), "h_n": torch.stack([f[0] for f in finals])}
    if spec.states == 2:
        found["c_n"] = torch.stack([f[1] for f in finals])
        found["c_sequence"] = torch.stack(c_sequences)
    return found


def layers_op(cell, schedule="round robin", **device):
    return getattr(ops(schedule, **device), f"{cell}_layers_persistent").default


def check_layers(cell, case, math, count=3, schedule="round robin", **device):
    dtype, tf32 = math
    run = layers_op(cell, schedule, **device)
    found = []
    # As check_sequence: tiny cases are drawn several times, or the rule would compare luck.
    for _ in range(max(1, 64 // (case.steps * case.batch * case.hidden_size))):
        inputs, layout = layer_inputs(cell, case, dtype, count)
        results, inference = (run(*inputs, *layout, save) for save in (True, False))
        assert inference[3].numel() == inference[4].numel() == 0
        for one, other in zip(results[:3], inference[:3], strict=True):
            assert torch.equal(one, other), "results change without saving"
        theirs = layers_expected(cell, inputs, layout, dtype, tf32)
        exact = layers_expected(cell, inputs, layout, torch.float64)
        names = ("output", "h_n", "c_n", "c_sequence")
        found.append((dict(zip(names, results[:4], strict=True)), theirs, exact))
    for name in found[0][2]:
        assert_parity(*(torch.stack([f[i][name] for f in found]) for i in range(3)), name)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS)
def test_these_tests_exchange(cell, math, exchange):
    """Every case wider than a block really takes the exchange it is there for."""
    for case in (*SIZES.values(), *OPTIONS.values()):
        for backward, parts in ((False, "directions"), (True, "directions"), (False, "layers")):
            sizes = (case.batch, case.hidden_size)
            count = {parts: 2 if parts == "directions" else 3}
            found = _extension.C.plan(cell, math, backward, *sizes, **count, **EXCHANGES[exchange])
            if not (found["refusal"].startswith("launches of their own")):
                assert found["exchange"] == (exchange if case.hidden_size > 16 else "none")


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cell, math", KINDS, indirect=["math"])
def test_directions(cell, case, math, exchange):
    check_directions(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cell, math", KINDS, indirect=["math"])
def test_layers(cell, case, math, exchange):
    check_layers(cell, case, math, **EXCHANGES[exchange])


@pytest.mark.parametrize("math", ["float32"], indirect=True)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("check", [check_directions, check_layers])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_options(cell, check, case, math):
    for device in EXCHANGES.values():
        check(cell, case, math, **device)


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("check", [check_directions, check_layers])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_schedules(cell, check, exchange, schedule):
    """Other orders of the threads; the first is that of all other tests."""
    case = Case(5, 9, 72)
    check(cell, case, MATHS["bfloat16"], schedule=schedule, **EXCHANGES[exchange])


def test_one_block_a_layer_and_the_most_layers():
    """Layers that exchange nothing within themselves still wait for the one below."""
    for schedule in SCHEDULES:
        check_layers("gru", Case(4, 9, 24), MATHS["float16"], count=8, schedule=schedule)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers(sanitizer, exchange):
    case = Case(3, 9, 40, lengths=(3, 1) * 4 + (2,))
    run = layers_op("lstm", **EXCHANGES[exchange])
    inputs, layout = layer_inputs("lstm", case, torch.bfloat16, 2)
    values, options = inputs_of("lstm", case, torch.bfloat16)
    with recorded(library()) as launches:
        run(*inputs, *layout, True)
        both = Both("lstm", **EXCHANGES[exchange])
        output, _, _, c_sequence, saved = both.forward(*values, *options, True)
        both.backward(output, values[3], values[4], c_sequence, *options)
    program = build(["csrc/cuda/persistent_bfloat16.cu"], sanitizer=sanitizer)
    persistent = [x for x in launches if "persistent_kernel" in x.kernel]
    assert len(persistent) == 3
    for launch in persistent:
        replay(program, launch).check()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_bit_equal_reruns(exchange):
    inputs, layout = layer_inputs("lstm", Case(4, 9, 40), torch.float16, 3)
    first, second = (
        layers_op("lstm", schedule, **EXCHANGES[exchange])(*inputs, *layout, True)
        for schedule in SCHEDULES[:2]
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("steps, batch", [(0, 2), (2, 0)])
def test_without_work(steps, batch):
    inputs, layout = layer_inputs("lstm", Case(1, batch, 3), torch.float32, 2)
    inputs[0] = torch.randn(steps, batch, 12)
    results = layers_op("lstm")(*inputs, *layout, True)
    assert results[0].shape == (2, steps, batch, 3)
    assert all(map(torch.equal, results[1:3], inputs[-2:]))


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
    with pytest.raises(RuntimeError, match=r"h_0 of shape \[3, N, H\], got \[2, 2, 24\]"):
        run(*inputs, *layout, True)
    inputs[2] = inputs[2] * 4
    with pytest.raises(RuntimeError, match="1 to 8 tensors weight_hh, got 12"):
        run(*inputs, *layout, True)
    both = getattr(ops(), "lstm_directions_persistent").default  # noqa: B009
    with pytest.raises(RuntimeError, match="expected 2 tensors weight_hh, got 12"):
        both(inputs[0], inputs[2], [], *inputs[-2:], *layout, True)
