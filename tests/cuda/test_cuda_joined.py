"""Several recurrences in one launch on a GPU: both directions of a layer, and stacked layers."""

import copy

import pytest
import torch
from gpu import require_cuda
from joined import check_directions, check_layers, layer_inputs
from parity import MATHS, Case, recurrent_math
from tolerance import assert_parity

import seqkernels
from seqkernels import _extension
from seqkernels.cells import CELLS
from seqkernels.ops import get

SMALL = {
    "T1-N1-H1": Case(1, 1, 1),
    "T30-N13-H100": Case(30, 13, 100),
    "lengths": Case(9, 11, 200, lengths=(3, 6, 1, 9, 2, 6, 4, 4, 2, 0, 2)),
    "packed": Case(4, 9, 130, batch_sizes=(9, 3, 3, 1)),
    "reset-no-bias": Case(6, 4, 40, reset=True, bias=False),
}
FULL = {
    "T1000-N16-H512": Case(1000, 16, 512),
    "T300-N64-H256": Case(300, 64, 256),
    "T300-N1-H650": Case(300, 1, 650),
}


@pytest.fixture(autouse=True)
def device():
    return require_cuda("joined CUDA kernels")


@pytest.fixture
def math(request):
    """(dtype, tf32), with torch's switch for recurrent layers set to it."""
    with recurrent_math(request.param) as found:
        yield found


def check(cell, parts, case, math, device):
    """Parity of one launch, or the reason why there is none."""
    dtype, tf32 = math
    name = str(dtype).removeprefix("torch.")
    count = {"layers": 3} if parts == "layers" else {"directions": 2}
    sizes = (case.batch, case.hidden_size)

    def refusal(training):
        """Why there is no plan; the ops also run where separate launches would be faster."""
        found = _extension.C.persistent_refusal(cell, name, *sizes, training=training, **count)
        return None if found is not None and "estimated to be faster" in found else found

    reason = refusal(training=False)
    if reason is not None:
        return reason
    reason = refusal(training=True)
    run, back = (get(f"{cell}_{parts}_persistent{end}") for end in ("", "_backward"))
    if parts == "layers":
        run_back = back if reason is None else None
        check_layers(cell, case, dtype, run, device, tf32, run_back=run_back)
    elif reason is None:
        check_directions(cell, case, dtype, run, back, device, tf32)
    return reason


@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("parts", ["directions", "layers"])
@pytest.mark.parametrize("cell", CELLS)
def test_small_persistent(cell, parts, case, math, device, plans):
    reason = check(cell, parts, case, math, device)
    if case.hidden_size <= 100 or math[0] != torch.float32:
        assert reason is None


@pytest.mark.parametrize("math", ["float16", "tf32"], indirect=True)
@pytest.mark.parametrize("case", FULL.values(), ids=FULL)
@pytest.mark.parametrize("parts", ["directions", "layers"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_persistent_at_full_size(cell, parts, case, math, device):
    reason = check(cell, parts, case, math, device)
    if case.hidden_size == 256 and math[0] == torch.float16:
        assert reason is None


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 3}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("math", ["float32"], indirect=True)
def test_persistent_layers_take_one_launch_and_match_torch(kind, options, math, device):
    theirs = getattr(torch.nn, kind)(24, 64, **options).to(device)
    ours = getattr(seqkernels, kind)(24, 64, **options).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 5, 24, device=device)
    shared = (
        "in one launch" if "bidirectional" in options else "in one launch, forward and backward"
    )
    assert shared in seqkernels.explain(ours, x)
    exact = copy.deepcopy(theirs).double()
    found = []
    for module, leaf in ((ours, x), (theirs, x), (exact, x.double())):
        leaf = leaf.clone().requires_grad_()
        output = module(leaf)[0]
        grads = torch.autograd.grad(output.square().sum(), [leaf, *module.parameters()])
        found.append([output.detach(), *grads])
    for index, (one, other, right) in enumerate(zip(*found, strict=True)):
        assert_parity(one, other, right, str(index))


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 3}], ids=str)
def test_persistent_layers_compile_without_a_graph_break(options, device):
    """torch.compile with dynamic batches: the plan is asked for while the graph is made."""
    module = seqkernels.GRU(24, 64, **options).to(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (5, 3):
        x = torch.randn(7, batch, 24, device=device)
        found, eager = (
            torch.autograd.grad(call(x)[0].square().sum(), list(module.parameters()))
            for call in (compiled, module)
        )
        for one, other in zip(found, eager, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("parts", ["directions", "layers"])
def test_persistent_cuda_graph_and_bit_equal_runs(parts, device):
    inputs, layout = layer_inputs("lstm", Case(40, 16, 256), torch.float16, 2, device)
    if parts == "directions":
        gates_x, _, weight_hh, _, bias_hh, *states = inputs
        inputs = [torch.cat((gates_x, gates_x), -1), weight_hh, bias_hh, *states]
    forward, back = (get(f"lstm_{parts}_persistent{end}") for end in ("", "_backward"))
    *weights, h_0, c_0 = inputs[1:]
    if parts == "layers":
        weights = [weights[i] for i in (0, 1, 3)]  # all but bias_ih

    def run():
        output, h_n, c_n, c_sequence, saved = forward(*inputs, *layout, True)
        last, last_c = (r[-1] if parts == "layers" else r for r in (output, c_sequence))
        given = (last, h_n, c_n, last_c, *weights, h_0, c_0, output, c_sequence, saved)
        return [output, h_n, c_n, c_sequence, saved, *back(*given, *layout)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    inputs[0].copy_(torch.randn_like(inputs[0]))
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, run()))


def test_persistent_layers_in_flight_on_two_streams(device):
    """Grids whose blocks wait for each other queue up without a deadlock."""
    inputs, layout = layer_inputs("lstm", Case(50, 16, 256), torch.float16, 4, device)
    run = get("lstm_layers_persistent")
    expected = run(*inputs, *layout, False)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for i in range(20):
        with torch.cuda.stream(streams[i % 2]):
            found.append(run(*inputs, *layout, False)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(f, expected) for f in found)
