"""The drop-in layers on a GPU, by every backend: the numbers of torch.nn, and how they behave."""

import copy

import pytest
import torch
from gpu import require_cuda
from tolerance import about, assert_parity
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels

pytestmark = pytest.mark.cuda

BACKENDS = (None, "persistent", "stepwise", "triton")
LAYERS = {
    "LSTM": ("LSTM", {}),
    "LSTM-stacked": ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "GRU": ("GRU", {"bidirectional": True}),
    "RNN": ("RNN", {"bias": False}),
}
LENGTHS = (12, 3, 1, 9, 12, 7, 2, 5, 6, 4, 11)


@pytest.fixture(autouse=True)
def device():
    """The GPU, with float32 products in float32."""
    found = require_cuda("the layers on CUDA")
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.fp32_precision
    rnn.fp32_precision = matmul.fp32_precision = "ieee"
    yield found
    rnn.fp32_precision, matmul.fp32_precision = before


def trio(kind, options, dtype, device, sizes=(40, 72)):
    """Ours, torch's in the same dtype, torch's in float64; equal parameters."""
    theirs = getattr(nn, kind)(*sizes, **options).to(device, dtype)
    ours = getattr(seqkernels, kind)(*sizes, **options).to(device, dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results]
    return [t for r in results for t in flat(r)]


def run(call, module, x):
    """Results and gradients of the input and all parameters, by name."""
    x = x.detach().requires_grad_()
    results = flat(call(module, x))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    # A compiled module puts its own name before those of its parameters.
    leaves = {n.removeprefix("_orig_mod."): p for n, p in module.named_parameters()}
    leaves["x"] = x
    grads = torch.autograd.grad(results, list(leaves.values()), weights)
    found = {f"result {i}": r.detach() for i, r in enumerate(results)}
    return found | {f"grad_{n}": g for n, g in zip(leaves, grads, strict=True)}


def check(modules, x, ours_call, theirs_call, **facts):
    ours, theirs, exact = modules
    found = run(ours_call, ours, x)
    torchs, right = run(theirs_call, theirs, x), run(theirs_call, exact, x.double())
    for name, value in found.items():
        direction = "backward" if name.startswith("grad_") else "forward"
        with about(**facts, direction=direction):
            assert_parity(value, torchs[name], right[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_numbers_of_torch(name, backend, dtype, device):
    kind, options = LAYERS[name]
    modules = trio(kind, options, dtype, device)
    x = torch.randn(12, 11, 40).to(device, dtype)
    with seqkernels.use_backend(backend):
        check(
            modules,
            x,
            lambda module, x: module(x),
            lambda module, x: module(x),
            kernel=f"layer, {backend or 'dispatched'}",
            cell=name,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lengths_and_packed_input(kind, backend, device):
    """Ours with lengths on the device, ours packed and torch's packed are the same."""
    modules = trio(kind, {"bidirectional": True}, torch.float32, device)
    x, lengths = torch.randn(12, 11, 40, device=device), torch.tensor(LENGTHS)

    def packed(module, x):
        sequence = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, state = module(sequence)
        return pad_packed_sequence(output)[0], state

    def padded(module, x):
        return module(x, lengths=lengths.to(device))

    facts = {"kernel": f"layer, {backend or 'dispatched'}", "cell": kind}
    with seqkernels.use_backend(backend):
        check(modules, x, padded, packed, **facts)
        check(modules, x, packed, packed, **facts)


def test_projection(device):
    modules = trio("LSTM", {"proj_size": 24}, torch.float32, device)
    x = torch.randn(7, 5, 40, device=device)
    check(modules, x, lambda m, x: m(x), lambda m, x: m(x), kernel="layer, dispatched", cell="LSTM")


def test_autocast(device):
    ours, theirs, exact = trio("LSTM", {}, torch.float32, device)
    x = torch.randn(12, 11, 40, device=device)
    with torch.no_grad():
        right = exact(x.double())[0]
        with torch.autocast("cuda", torch.bfloat16):
            found, torchs = ours(x)[0], theirs(x)[0]
    assert found.dtype == torchs.dtype == torch.bfloat16
    assert_parity(found, torchs, right, "output under autocast")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("layout", ["lengths", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_step_does_not_wait(backend, layout, device):
    model = seqkernels.LSTM(40, 72, num_layers=2, bidirectional=True).to(device)
    x, options = torch.randn(12, 11, 40, device=device), {}
    if layout == "packed":
        x = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    else:
        options = {"lengths": torch.tensor(LENGTHS, device=device)}

    def step():
        output, _ = model(x, **options)
        (output.data if layout == "packed" else output).square().mean().backward()

    with seqkernels.use_backend(backend):
        step()  # compiles and tunes
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def captured(call):
    """A graph of `call` and what its replays fill; what a first call sets up is no part of it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_in_a_graph(backend, device):
    model = seqkernels.GRU(40, 72, num_layers=2, bidirectional=True).to(device).eval()
    x = torch.randn(12, 11, 40, device=device)
    with seqkernels.use_backend(backend), torch.no_grad():
        graph, found = captured(lambda: model(x)[0])
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(found, model(x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_training_in_a_graph(backend, device):
    """Replays after the host's numbers are gone: none of them may be read again."""
    model = seqkernels.GRU(40, 72, bidirectional=True).to(device)
    x = torch.randn(12, 11, 40, device=device)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)

    def gradients():
        loss = model(packed)[0].data.square().sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    with seqkernels.use_backend(backend):
        graph, found = captured(gradients)
        packed.data.copy_(torch.randn_like(packed.data))
        for _ in range(3):
            graph.replay()
        for one, other in zip(found, gradients(), strict=True):
            assert torch.equal(one, other)


def test_compiled_without_a_break(device):
    ours, theirs, exact = trio("LSTM", {"num_layers": 2}, torch.float32, device)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = torch.randn(12, 11, 40, device=device)
    facts = {"kernel": "layer, compiled", "cell": "LSTM"}
    check((compiled, theirs, exact), x, lambda m, x: m(x), lambda m, x: m(x), **facts)


def test_double_backward(device):
    """Through the reference recurrence; torch.nn with cuDNN cannot."""
    model = seqkernels.LSTM(5, 6).to(device)
    x = torch.randn(4, 3, 5, device=device, requires_grad=True)
    (first,) = torch.autograd.grad(model(x)[0].square().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(first.square().sum(), x)
    exact, wide = nn.LSTM(5, 6).double(), x.detach().cpu().double().requires_grad_()
    exact.load_state_dict(model.state_dict())
    (first,) = torch.autograd.grad(exact(wide)[0].square().sum(), wide, create_graph=True)
    (right,) = torch.autograd.grad(first.square().sum(), wide)
    torch.testing.assert_close(found.cpu().double(), right, rtol=1e-4, atol=1e-5)
