"""FlopCounterMode counts every op: totals are those of the products, two for a multiply-add."""

import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import seqkernels
import seqkernels.triton  # noqa: F401  (defines its ops)
from seqkernels.cells import CELLS
from seqkernels.ops import defined, flops, get

T, N, I, H = 7, 3, 8, 16  # noqa: E741
LAYERS = {
    "LSTM": (seqkernels.LSTM, 4, {}),
    "GRU": (seqkernels.GRU, 3, {}),
    "GRU reset before": (seqkernels.GRU, 3, {"reset": "before"}),
    "RNN tanh": (seqkernels.RNN, 1, {}),
    "RNN relu": (seqkernels.RNN, 1, {"nonlinearity": "relu"}),
}
# What moves numbers, and what answers questions.
NOT_COUNTED = {"batch_sizes_on", "greedy_refusal", "cpu_isa"}

flops.register()  # where torch can use no GPU, the counter does not ask for Triton's ops


def counted(function, *args, **keywords) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args, **keywords)
    return counter.get_total_flops()


def trained(layer, *args, **keywords) -> None:
    output = layer(*args, **keywords)[0]
    output = output if isinstance(output, torch.Tensor) else output.data
    output.sum().backward()


def every_layer():
    return pytest.mark.parametrize(("kind", "gates", "options"), LAYERS.values(), ids=LAYERS)


def test_every_op_has_a_formula():
    names = {
        name.removeprefix("seqkernels::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("seqkernels::")
    }
    assert len(names) > 60
    missing = {n for n in names if getattr(torch.ops.seqkernels, n) not in flop_registry}
    assert missing == NOT_COUNTED


@every_layer()
def test_inference(kind, gates, options):
    layer, x = kind(I, H, **options), torch.randn(T, N, I)
    with torch.no_grad():
        assert counted(layer, x) == 2 * T * N * gates * H * (I + H)


@every_layer()
@pytest.mark.parametrize("needs_input", [False, True])
def test_training(kind, gates, options, needs_input):
    """The backward carries the gradient from step to step, and makes those of both weights."""
    layer, x = kind(I, H, **options), torch.randn(T, N, I, requires_grad=needs_input)
    forward = 2 * T * N * gates * H * (I + H)
    without_input = 2 * T * N * gates * H * (I + 2 * H)
    expected = 3 * forward if needs_input else forward + without_input
    assert counted(trained, layer, x) == expected


@every_layer()
def test_two_layers_in_both_directions(kind, gates, options):
    layer = kind(I, H, num_layers=2, bidirectional=True, **options)
    x = torch.randn(T, N, I, requires_grad=True)
    forward = 2 * T * N * gates * H * 2 * ((I + H) + (2 * H + H))
    assert counted(trained, layer, x) == 3 * forward


@every_layer()
def test_packed(kind, gates, options):
    layer, lengths = kind(I, H, **options), (5, 7, 2)
    packed = pack_sequence([torch.randn(n, I) for n in lengths], enforce_sorted=False)
    forward = 2 * sum(lengths) * gates * H * (I + H)
    with torch.no_grad():
        assert counted(layer, packed) == forward
    backward = 2 * sum(lengths) * gates * H * (I + 2 * H)
    assert counted(trained, layer, packed) == forward + backward


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("rows", [1, 5], ids=["few", "many"])
def test_cells(kind, rows):
    gates = {"LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}[kind]
    cell = getattr(seqkernels, kind)(I, H)
    x, h = torch.randn(rows, I, requires_grad=True), torch.randn(rows, H, requires_grad=True)
    hx = (h, torch.randn(rows, H)) if kind == "LSTMCell" else h
    forward = 2 * rows * gates * H * (I + H)
    with torch.no_grad():
        assert counted(cell, x, hx) == forward

    def train():
        result = cell(x, hx)
        (result if isinstance(result, torch.Tensor) else result[0]).sum().backward()

    assert counted(train) == 3 * forward


def test_onednn_layers_are_counted():
    """Torch's own op runs inference of wide batches, and torch.nn's LSTM."""
    x, forward = torch.randn(T, 40, I, requires_grad=True), 2 * T * 40 * 4 * H * (I + H)
    with torch.no_grad():
        assert counted(seqkernels.LSTM(I, H), x) == forward
    assert counted(trained, torch.nn.LSTM(I, H), x) == 3 * forward


@pytest.mark.parametrize("cell", CELLS)
def test_the_layer_op_counts_what_its_parts_do(cell):
    """As compiled programs call it: its backward is made of ops that are counted."""
    gates, two = CELLS[cell].gates, CELLS[cell].states == 2
    weights = [torch.randn(gates * H, size, requires_grad=True) for size in (I, H)]
    x = torch.randn(T, N, I, requires_grad=True)
    state = (torch.zeros(N, H), torch.zeros(N, H) if two else None)

    def train():
        layout = (None, None, None, False, True, "")
        get(f"{cell}_layer")(x, *weights, None, None, *state, *layout)[0].sum().backward()

    assert counted(train) == 3 * 2 * T * N * gates * H * (I + H)


def shapes_only(name, *args):
    """What an op's formula gives, with tuples for tensors: no kernel need exist here."""
    tensors = [_meta(arg) for arg in args]
    return flop_registry[getattr(torch.ops.seqkernels, name)](*tensors)


def _meta(value):
    if isinstance(value, list):
        return [_meta(v) for v in value]
    return torch.empty(value, device="meta") if isinstance(value, tuple) else value


@pytest.mark.parametrize("cell", CELLS)
def test_ops_of_several_recurrences(cell):
    g, k = CELLS[cell].gates * H, CELLS[cell].saved * H
    layout = (None, None, None)
    grads, state = ((T, N, H), (2, N, H), None, None), ((2, N, H), None)
    ih, hh = [(g, H)], [(g, H), (g, H)]
    name = f"{cell}_layers_persistent"
    found = shapes_only(name, (T, N, g), ih, hh, [], [], *state, *layout, True)
    assert found == 2 * T * N * 3 * g * H
    kept = ((2, T, N, H), (0,), (2, T, N, k))
    found = shapes_only(f"{name}_backward", *grads, ih, hh, [], *state, *kept, *layout)
    assert found == 2 * T * N * 3 * g * H
    name = f"{cell}_directions_persistent"
    assert shapes_only(name, (T, N, 2 * g), hh, [], *state, *layout, True) == 2 * T * N * 2 * g * H
    kept = ((T, N, 2 * H), (0,), (T, N, 2 * k))
    name += "_backward"
    assert shapes_only(name, *grads, hh, [], *state, *kept, *layout) == 2 * T * N * 2 * g * H
    for stacked, inputs in ((True, [(g, I), (g, H)]), (False, [(g, I), (g, I)])):
        args = ((T, N, I), inputs, hh, [], [], *state, *layout, stacked, True, "_persistent", False)
        expected = 2 * T * N * g * sum(size + H for _, size in inputs)
        assert shapes_only(f"{cell}_joined", *args) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_ops_of_one_recurrence(cell):
    g, k = CELLS[cell].gates * H, CELLS[cell].saved * H
    layout, state, rows = (None, None, None, False), ((N, H), None), 11
    for suffix in ("", "_persistent", "_triton"):
        name = f"{cell}_sequence{suffix}"
        for first in ((T, N), (rows,)):
            forward = shapes_only(name, (*first, g), (g, H), None, *state, *layout, True)
            kept = ((*first, H), (0,), (*first, k))
            args = (None, (N, H), None, None, (g, H), None, *state, *kept, *layout)
            expected = 2 * (T * N if len(first) == 2 else rows) * g * H
            assert forward == shapes_only(f"{name}_backward", *args) == expected
    lookup = ((50, g), (T, N), (g, H), None, *state, None, False)
    assert shapes_only(f"{cell}_lookup", *lookup) == 2 * T * N * g * H


@pytest.mark.parametrize("cell", [name for name in CELLS if defined(f"{name}_greedy")])
def test_greedy_decoding_counts_every_step(cell):
    """An upper bound: a row that ends early is counted to the end."""
    g, vocabulary, embedded, steps = CELLS[cell].gates * H, 20, 6, 9
    weights = ([(g, embedded), (g, H)], [(g, H), (g, H)], [], [], (vocabulary, H), None)
    args = ((vocabulary, embedded), *weights, (2, N, H), None, (N,), steps, 1, 0, False)
    expected = 2 * N * steps * (g * embedded + 3 * g * H + vocabulary * H)
    assert shapes_only(f"{cell}_greedy", *args) == expected


def test_gradient_of_a_weight():
    grads, x = [torch.randn(10, 4), torch.randn(10, 6)], [torch.randn(3, 5), torch.randn(7, 5)]
    assert counted(get("rows_product"), grads, x) == 2 * 10 * (4 + 6) * 5


@pytest.mark.parametrize("counter_first", [False, True])
def test_importing_the_package_does_not_import_the_counter(counter_first):
    """It imports Triton. Formulas are there whichever of the two is imported first."""
    imports = ["import sys, seqkernels", "assert 'torch.utils.flop_counter' not in sys.modules"]
    counter = "from torch.utils.flop_counter import FlopCounterMode"
    lines = [
        *([counter, imports[0]] if counter_first else [*imports, counter]),
        "import torch",
        "with FlopCounterMode(display=False) as found:",
        "    seqkernels.GRU(2, 3)(torch.zeros(4, 5, 2))",
        "print(found.get_total_flops())",
    ]
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * 4 * 5 * 9 * (2 + 3)
