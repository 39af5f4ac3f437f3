"""Exported to ONNX, models give the same numbers in onnxruntime, at sizes other than exported."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import seqkernels
import seqkernels.onnx
from seqkernels.cells import CELLS
from seqkernels.ops import get

ExporterError = torch.onnx.errors.OnnxExporterError
needs_onnx = pytest.mark.needs("onnx")
# Of torch's exporter; in the second, two inputs share a dynamic size, on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]

I, H = 5, 6  # noqa: E741
SIZES = ((7, 3), (1, 1), (12, 2), (3, 5))  # T, N; the first is exported
BATCH, TIME = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=1, max=64)
LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM stacked": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "LSTM no bias": ("LSTM", {"bias": False, "num_layers": 2}),
    "LSTM projected": ("LSTM", {"proj_size": 3, "bidirectional": True, "num_layers": 2}),
    "GRU": ("GRU", {}),
    "GRU stacked": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "GRU no bias": ("GRU", {"bias": False}),
    "GRU reset before": ("GRU", {"reset": "before", "bidirectional": True}),
    "GRU update replace": ("GRU", {"update": "replace"}),
    "RNN tanh": ("RNN", {"num_layers": 2, "bidirectional": True}),
    "RNN relu": ("RNN", {"nonlinearity": "relu", "bias": False}),
}


def flat(results) -> list[torch.Tensor]:
    if results is None:
        return []
    if isinstance(results, torch.Tensor):
        return [results]
    return [t for r in results for t in flat(r)]


def export(model: nn.Module, *args, shapes=None, **options) -> torch.onnx.ONNXProgram:
    options.setdefault("custom_translation_table", seqkernels.onnx.table())
    return torch.onnx.export(
        model.eval(), args, dynamo=True, verbose=False, dynamic_shapes=shapes, **options
    )


def in_onnxruntime(program: torch.onnx.ONNXProgram):
    """A function of the exported model's tensors that returns its results."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]

    def run(*args):
        values = (value.numpy() for value in flat(args))
        return list(map(torch.from_numpy, session.run(None, dict(zip(names, values, strict=True)))))

    return run


def assert_same(run, model, *args, atol=2e-6):
    with torch.no_grad():
        expected = flat(model(*args))
    found = run(*args)
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        torch.testing.assert_close(f, e, rtol=0, atol=atol)


def every_layer():
    return pytest.mark.parametrize(("kind", "options"), LAYERS.values(), ids=LAYERS)


def with_and_without_grad():
    """Programs differ: with gradients enabled a layer is one op, without it begins projected."""
    return pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])


def state(kind, options, batch):
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    h = torch.randn(rows, batch, options.get("proj_size") or H)
    return (h, torch.randn(rows, batch, H)) if kind == "LSTM" else h


class WithState(nn.Module):
    """A layer as a function of the input and its initial state, both results returned."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, hx):
        return self.layer(x, hx)


class WithLengths(WithState):
    def forward(self, x, hx, lengths):
        return self.layer(x, hx, lengths=lengths)


@needs_onnx
@every_layer()
@with_and_without_grad()
def test_layer(kind, options, grad):
    model = WithState(getattr(seqkernels, kind)(I, H, **options))
    args = [(torch.randn(t, n, I), state(kind, options, n)) for t, n in SIZES]
    hx = {1: BATCH}
    shapes = {"x": {0: TIME, 1: BATCH}, "hx": (hx, hx) if kind == "LSTM" else hx}
    with torch.set_grad_enabled(grad):
        run = in_onnxruntime(export(model, *args[0], shapes=shapes))
    for each in args:
        assert_same(run, model, *each)


@needs_onnx
@every_layer()
@with_and_without_grad()
def test_lengths(kind, options, grad):
    """Rows of no step are among them."""
    model = WithLengths(getattr(seqkernels, kind)(I, H, **options))
    args = []
    for t, n in SIZES:
        lengths = torch.randint(0, t + 1, (n,))
        lengths[0], lengths[-1] = t, 0
        args.append((torch.randn(t, n, I), state(kind, options, n), lengths))
    hx = {1: BATCH}
    shapes = {
        "x": {0: TIME, 1: BATCH},
        "hx": (hx, hx) if kind == "LSTM" else hx,
        "lengths": {0: BATCH},
    }
    with torch.set_grad_enabled(grad):
        run = in_onnxruntime(export(model, *args[0], shapes=shapes))
    for each in args:
        assert_same(run, model, *each)


@needs_onnx
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@with_and_without_grad()
def test_converted_model(kind, grad):
    """Batch first, no state given, between other layers."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, I)
            self.rnn = getattr(nn, kind)(I, H, 2, batch_first=True, bidirectional=True)
            self.output = nn.Linear(2 * H, 4)

        def forward(self, tokens):
            return self.output(self.rnn(self.embedding(tokens))[0])

    model = seqkernels.convert(Tagger())
    tokens = [torch.randint(11, (n, t)) for t, n in SIZES]
    with torch.set_grad_enabled(grad):
        program = export(model, tokens[0], shapes=({0: BATCH, 1: TIME},))
    run = in_onnxruntime(program)
    for each in tokens:
        assert_same(run, model, each)


@needs_onnx
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTMCell", {}),
        ("LSTMCell", {"bias": False}),
        ("GRUCell", {}),
        ("GRUCell", {"reset": "before"}),
        ("GRUCell", {"update": "replace"}),
        ("RNNCell", {}),
        ("RNNCell", {"nonlinearity": "relu"}),
    ],
)
@with_and_without_grad()
def test_cell(kind, options, grad):
    model = WithState(getattr(seqkernels, kind)(I, H, **options))
    two = kind == "LSTMCell"

    def arguments(n):
        h = torch.randn(n, H)
        return torch.randn(n, I), (h, torch.randn(n, H)) if two else h

    rows = {0: BATCH}
    shapes = {"x": rows, "hx": (rows, rows) if two else rows}
    with torch.set_grad_enabled(grad):
        run = in_onnxruntime(export(model, *arguments(3), shapes=shapes))
    for n in (3, 1, 8):
        assert_same(run, model, *arguments(n))


@needs_onnx
@with_and_without_grad()
def test_a_layer_is_one_node_and_projects_once(grad):
    """A program without gradients begins with the projected input, and ONNX's op projects again."""
    with torch.set_grad_enabled(grad):
        program = export(seqkernels.GRU(I, H), torch.randn(4, 3, I))
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("GRU") == 1
    assert "MatMul" not in kinds and "Gemm" not in kinds


class Op(nn.Module):
    """An op called directly: its first `count` results, with `rest` as its last arguments."""

    def __init__(self, name, count, *rest):
        super().__init__()
        self.name, self.count, self.rest = name, count, rest

    def forward(self, *args):
        return get(self.name)(*args, *self.rest)[: self.count]


@needs_onnx
@pytest.mark.parametrize("cell", CELLS)
def test_gates_that_no_product_made(cell):
    """The sequence op on any gates: ONNX's op projects with the unit matrix, which is exact."""
    width, states = CELLS[cell].gates * H, CELLS[cell].states
    c_0 = torch.randn(3, H) if states > 1 else None
    args = (torch.randn(4, 3, width), torch.randn(width, H), torch.randn(width))
    args = (*args, torch.randn(3, H), c_0)
    model = Op(f"{cell}_sequence", 1 + states, None, None, None, True, False)
    assert_same(in_onnxruntime(export(model, *args)), model, *args)


@needs_onnx
@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if spec.pointwise])
def test_step(cell):
    width, states = CELLS[cell].gates * H, CELLS[cell].states
    args = (torch.randn(3, I), torch.randn(width, I), torch.randn(width, H))
    args = (*args, torch.randn(width), torch.randn(width), torch.randn(3, H))
    args = (*args, torch.randn(3, H) if states > 1 else None)
    model = Op(f"{cell}_step", states, False)
    assert_same(in_onnxruntime(export(model, *args)), model, *args)


class Joined(nn.Module):
    """A layer as programs that were captured on a GPU contain it: one op for all its parts."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.cell, self.stacked = layer.mode.lower(), not layer.bidirectional

    def forward(self, x, hx, lengths):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = dict(self.layer.named_parameters())
        weights = [[w for name, w in weights.items() if name.startswith(kind)] for kind in names]
        h_0, c_0 = hx if self.cell == "lstm" else (hx, None)
        how = (self.stacked, False, "_persistent", False)
        found = get(f"{self.cell}_joined")(x, *weights, h_0, c_0, lengths, None, None, *how)
        return found[0], found[1:3] if self.cell == "lstm" else found[1]


@needs_onnx
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_several_recurrences_in_one_op(kind, options):
    layer = getattr(seqkernels, kind)(I, H, **options)
    lengths = torch.tensor([4, 0, 2])
    args = (torch.randn(4, 3, I), state(kind, options, 3), lengths)
    run = in_onnxruntime(export(Joined(layer), *args))
    assert_same(run, WithLengths(layer), *args)


@needs_onnx
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_half_precision(kind):
    """onnxruntime computes in float32, as the kernels do."""
    model = getattr(seqkernels, kind)(I, H, dtype=torch.float16)
    x = torch.randn(4, 3, I, dtype=torch.float16)
    assert_same(in_onnxruntime(export(model, x)), model, x, atol=2e-3)


@needs_onnx
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_double_precision(kind):
    """onnxruntime has no recurrent ops in float64; the standard's own evaluator has."""
    from onnx.reference import ReferenceEvaluator

    model = getattr(seqkernels, kind)(I, H, 2, dtype=torch.float64)
    x = torch.randn(4, 3, I, dtype=torch.float64)
    evaluator = ReferenceEvaluator(export(model, x).model_proto)

    def run(x):
        found = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
        return list(map(torch.from_numpy, found))

    assert_same(run, model, x, atol=1e-12)


class Keywords(nn.Module):
    """A layer with more keyword arguments."""

    def __init__(self, layer, **keywords):
        super().__init__()
        self.layer, self.keywords = layer, keywords

    def forward(self, x):
        return self.layer(x, **self.keywords)


@needs_onnx
@with_and_without_grad()
def test_what_onnx_cannot_express_is_refused_by_name(grad):
    x, lstm = torch.randn(4, 3, I), seqkernels.LSTM(I, H)
    gru = seqkernels.GRU(I, H, reset="before")
    kind = "layer" if grad else "sequence"
    with torch.set_grad_enabled(grad):
        for model, words in (
            (Keywords(gru, reset=torch.zeros(4, 3) > 0), f"gru_reset_before_{kind} .*`reset`"),
            (Keywords(lstm, return_c_sequence=True), f"lstm_{kind} .*`return_c_sequence`"),
        ):
            with pytest.raises(ExporterError, match=f"seqkernels::{words}"):
                export(model, x)


@needs_onnx
def test_packed_input_is_refused_by_name():
    model = Op("rnn_tanh_sequence", 2, None, None, torch.tensor([2, 1]), None, False, False)
    args = (torch.randn(3, H), torch.randn(H, H), None, torch.randn(2, H))
    with pytest.raises(ExporterError, match="rnn_tanh_sequence .* padded input and `lengths`"):
        export(model, *args)


@needs_onnx
def test_greedy_decoding_is_refused_by_name():
    class Decoder(nn.Module):
        def forward(self, embedding, weight_ih, weight_hh, h_0):
            found = seqkernels.decode.greedy(
                "gru", embedding, [(weight_ih, weight_hh)], (embedding,), (h_0,), 0, max_length=3
            )
            return found.tokens

    args = (torch.randn(9, H), torch.randn(3 * H, H), torch.randn(3 * H, H), torch.randn(1, 2, H))
    with pytest.raises(ExporterError, match="gru_greedy .* loop around it"):
        export(Decoder(), *args)


@needs_onnx
def test_without_the_table_the_error_names_the_op():
    with pytest.raises(ExporterError, match="No ONNX function found for .*gru"):
        export(seqkernels.GRU(I, H), torch.randn(4, 3, I), custom_translation_table=None)


def test_it_is_reached_from_the_package():
    code = "import seqkernels; print(callable(seqkernels.onnx.table), hasattr(seqkernels, 'nope'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_missing_packages_are_one_sentence():
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "import seqkernels.onnx\n"
        "seqkernels.onnx.table()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: ONNX export needs" in done.stderr.splitlines()[-1]
    assert 'pip install "seqkernels[onnx]"' in done.stderr.splitlines()[-1]


def test_the_package_alone_does_not_import_onnx():
    code = "import sys, seqkernels; assert not {'onnx', 'onnxscript'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
