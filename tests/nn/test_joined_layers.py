"""Whole layers on the emulated persistent kernels: dispatcher, joined launches and autograd."""

import pytest
import torch
from emulated_backend import DEVICE, persistent_on_the_cpu
from emulated_ops import ops
from pairs import assert_same, run, state, trio
from tolerance import assert_parity
from torch.nn.utils.rnn import pack_padded_sequence

import seqkernels
from seqkernels.cells import CELLS
from seqkernels.ops import get

pytestmark = pytest.mark.needs("headers")

TORCH_PRECISION = torch.backends.cudnn.rnn.fp32_precision
LAYERS = {
    "both directions": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "three layers, no bias": {"num_layers": 3, "bias": False},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


@pytest.fixture(autouse=True, name="persistent_on_the_cpu")
def emulated():
    with persistent_on_the_cpu() as called:
        yield called


def backwards(called):
    """The backward ops among those called, without cell and backend."""
    return [n.removesuffix("_persistent_backward").split("_")[-1] for n in called if "back" in n]


def forwards(called):
    """The forward ops among those called, without cell and backend."""
    return [n.removesuffix("_persistent").split("_")[-1] for n in called if "backward" not in n]


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_match_torch(kind, options, persistent_on_the_cpu):
    modules = trio(kind, 5, 37, **options, dtype=torch.float32)
    layers, directions = options.get("num_layers", 1), 1 + options.get("bidirectional", False)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    batch = 4 if options.get("batch_first") else 3
    hx = state(kind, (batch,), 37, layers=layers, directions=directions)
    assert_same(modules, x, hx)
    wanted = ["directions"] * layers if directions == 2 else ["layers"]
    assert forwards(persistent_on_the_cpu) == backwards(persistent_on_the_cpu) == wanted
    with torch.no_grad():
        inference, trained = modules.ours(x.float()), modules.ours(x.float())
    assert torch.equal(inference[0], trained[0])


def assert_options_match(module, batch_first=False):
    """Lengths, resets and the cell states of every step against the reference."""
    x, reset = torch.randn(5, 4, 5), torch.rand(5, 4) < 0.3
    keywords = {"lengths": torch.tensor([3, 5, 1, 4]), "reset": reset}
    if batch_first:
        x, reset = x.transpose(0, 1), reset.t()
        keywords["reset"] = reset
    if isinstance(module, seqkernels.LSTM):
        keywords["return_c_sequence"] = True
    found = run(module, torch.float32, (x,), **keywords)
    with seqkernels.use_backend("reference"):
        theirs = run(module, torch.float32, (x,), **keywords)
        exact = run(module.double(), torch.float64, (x,), **keywords)
    for name in found:
        assert_parity(found[name], theirs[name], exact[name], name)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind, more", [("LSTM", {}), ("GRU", {"reset": "before"})])
def test_options_match_the_reference(kind, more, options):
    assert_options_match(
        getattr(seqkernels, kind)(5, 24, **options, **more), options.get("batch_first", False)
    )


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"num_layers": 3, "bias": False}])
def test_options_of_a_backward_with_a_launch_for_each_layer(options, persistent_on_the_cpu):
    ops(**DEVICE, shared_per_block=26 << 10)
    assert_options_match(seqkernels.LSTM(5, 37, **options))
    assert forwards(persistent_on_the_cpu) == ["layers"]
    assert backwards(persistent_on_the_cpu) == ["sequence"] * options["num_layers"]


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_packed(options):
    modules = trio("LSTM", 5, 24, **{**options, "batch_first": False}, dtype=torch.float32)
    x = torch.randn(5, 4, 5, dtype=torch.float64)
    packed = pack_padded_sequence(x, [3, 5, 1, 4], enforce_sorted=False)
    found = []
    for module, dtype in zip(modules, (torch.float32, torch.float32, torch.float64), strict=True):
        output, hidden = module(packed.to(dtype))
        results = [output.data, *hidden]
        loss = sum((r * (i + 1)).square().sum() for i, r in enumerate(results))
        found.append([*results, *torch.autograd.grad(loss, list(module.parameters()))])
    for index, (ours, theirs, exact) in enumerate(zip(*found, strict=True)):
        assert_parity(ours, theirs, exact, str(index))


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_second_and_double_backward(options):
    module = seqkernels.GRU(5, 24, **options)
    x = torch.randn(4, 3, 5, requires_grad=True)
    wanted = [x, *module.parameters()]
    output, h_n = module(x)
    loss = output.square().sum() + h_n.sum()
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert all(map(torch.equal, first, second))
    grads = torch.autograd.grad(loss, wanted, create_graph=True)
    found = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)
    with seqkernels.use_backend("reference"):
        output, h_n = module(x)
    grads = torch.autograd.grad(output.square().sum() + h_n.sum(), wanted, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_outputs_changed_in_place_are_noticed_or_allowed():
    for options in LAYERS.values():
        module = seqkernels.LSTM(5, 24, **options)
        output, _ = module(torch.randn(4, 3, 5))
        output.mul_(2)  # what a backward reads
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
        with torch.no_grad():
            module(torch.randn(4, 3, 5))[0].relu_()


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_compiled_without_a_graph_break(options, persistent_on_the_cpu):
    torch._dynamo.reset()  # other tests have compiled the same function for other modules
    module = seqkernels.LSTM(5, 24, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (3, 2):
        runs = []
        x = torch.randn(batch, batch, 5)
        for call in (module, compiled):
            leaf = x.clone().requires_grad_()
            output, (h_n, c_n) = call(leaf)
            loss = output.square().sum() + (h_n * c_n).sum()
            runs.append([output, *torch.autograd.grad(loss, [leaf, *module.parameters()])])
        for eager, found in zip(*runs, strict=True):
            torch.testing.assert_close(found, eager)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], module(x)[0])
    joined = "directions" if options.get("bidirectional") else "layers"
    assert joined in forwards(persistent_on_the_cpu)
    assert joined in backwards(persistent_on_the_cpu)


def test_exported_with_a_dynamic_length():
    # torch.export itself asks for one answer of convolutions and recurrent layers.
    torch.backends.cudnn.rnn.fp32_precision = TORCH_PRECISION
    for options in LAYERS.values():
        module = seqkernels.GRU(5, 24, **options).eval()
        length = torch.export.Dim("length", min=2, max=64)
        dim = 1 if options.get("batch_first") else 0
        x = torch.randn(4, 4, 5)
        program = torch.export.export(module, (x,), dynamic_shapes={"input": {dim: length}})
        x = torch.randn(4, 7, 5) if dim else torch.randn(7, 4, 5)
        assert torch.equal(program.module()(x)[0], module(x)[0])


def test_explain_says_what_shares_a_launch():
    layer, x = seqkernels.LSTM(5, 24, num_layers=2), torch.randn(3, 2, 5)
    text = seqkernels.explain(layer, x)
    assert "2 layers in one launch, forward and backward" in text
    assert text.count("persistent:") == 1
    with torch.no_grad():
        assert "2 layers in one launch\n" in seqkernels.explain(layer, x)
    both = seqkernels.explain(seqkernels.GRU(5, 24, bidirectional=True), x)
    assert "both directions in one launch" in both
    ops(**DEVICE, processors=3)
    text = seqkernels.explain(layer, x)
    assert text.count("persistent:") == 2
    assert text.count("It has a launch of its own: ") == 2


def test_a_backward_that_is_slower_together_takes_a_launch_each(persistent_on_the_cpu):
    """The forward still shares one; gradients are those of the other way."""
    modules = trio("LSTM", 5, 37, num_layers=3, dtype=torch.float32)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    ops(**DEVICE, shared_per_block=26 << 10)
    text = seqkernels.explain(modules.ours, x.float())
    assert "3 layers in one launch\n" in text
    assert "each layer has a launch of its own: launches of their own are estimated" in text
    assert_same(modules, x, state("LSTM", (3,), 37, layers=3))
    assert forwards(persistent_on_the_cpu) == ["layers"]
    assert backwards(persistent_on_the_cpu) == ["sequence"] * 3


def test_dropout_between_layers_takes_a_launch_each(persistent_on_the_cpu):
    layer, x = seqkernels.LSTM(5, 24, num_layers=2, dropout=0.5), torch.randn(3, 2, 5)
    layer(x)
    assert forwards(persistent_on_the_cpu) == ["sequence"] * 2
    persistent_on_the_cpu.clear()
    layer.eval()(x)
    assert forwards(persistent_on_the_cpu) == ["layers"]


@pytest.mark.parametrize("parts", ["directions", "layers", "layers, backward apart"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_opcheck_of_the_joined_op(cell, parts):
    """Schema, fakes, autograd and a trace with dynamic shapes of `<cell>_joined`."""
    gates, states = CELLS[cell].gates, CELLS[cell].states

    def random(*shape):
        return torch.randn(shape).mul(0.3).requires_grad_()

    stacked = parts != "directions"
    weights = (
        [random(gates * 24, 5), random(gates * 24, 24 if stacked else 5)],
        [random(gates * 24, 24) for _ in range(2)],
        *([random(gates * 24) for _ in range(2)] for _ in range(2)),
    )
    state = [random(2, 3, 24), random(2, 3, 24) if states > 1 else None]
    rest = None, None, None, stacked, True, "_persistent", parts.endswith("apart")
    torch.library.opcheck(get(f"{cell}_joined"), (random(4, 3, 5), *weights, *state, *rest))


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
@pytest.mark.parametrize("parts", ["directions", "layers"])
def test_opcheck_of_the_kernels(parts, cell):
    """The forward and backward ops of a joined launch, which have no derivative of their own."""
    gates, two = CELLS[cell].gates, CELLS[cell].states > 1
    side = 2 if parts == "directions" else 1
    weight_hh = [torch.randn(gates * 24, 24) * 0.2 for _ in range(2)]
    bias_hh = [torch.randn(gates * 24) for _ in range(2)]
    weights, biases = [weight_hh], [bias_hh]
    if parts == "layers":
        weights, biases = [weight_hh[1:], weight_hh], [bias_hh[1:], bias_hh]
    state = torch.randn(2, 3, 24), torch.randn(2, 3, 24) if two else None
    layout = torch.tensor([2, 4, 1]), None, None
    forward, backward = (get(f"{cell}_{parts}_persistent{end}") for end in ("", "_backward"))
    given = torch.randn(4, 3, side * gates * 24), *weights, *biases, *state, *layout, True
    torch.library.opcheck(forward, given)
    output, h_n, c_n, c_sequence, saved = forward(*given)
    grad = torch.randn(4, 3, side * 24)
    grads = grad, h_n, c_n if two else None, grad if two else None
    results = output, c_sequence, saved
    torch.library.opcheck(backward, (*grads, *weights, bias_hh, *state, *results, *layout))
