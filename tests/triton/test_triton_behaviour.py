"""How the Triton ops behave on a GPU among other work: streams, graphs, repeats, other devices."""

import pytest
import torch
from gpu import require_cuda
from parity import Case, check_sequence, inputs_of

from seqkernels.cells import CELLS
from seqkernels.ops import get

pytestmark = pytest.mark.cuda

LAYOUTS = {
    "padded": Case(9, 24, 256),
    "lengths": Case(9, 24, 256, lengths=(3, 6, 1, 9, 2, 6, 4, 0) * 3),
    "packed": Case(4, 24, 256, batch_sizes=(24, 9, 9, 2)),
}
OPTIONS = {
    "no-bias": Case(5, 9, 72, bias=False),
    "lengths-reverse": Case(7, 11, 100, lengths=(3, 6, 1, 0, 7, 6, 4, 4, 2, 1, 2), reverse=True),
    "packed-reverse": Case(4, 9, 130, batch_sizes=(9, 3, 3, 1), reverse=True),
    "reset-lengths": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True),
}


@pytest.fixture(autouse=True)
def device():
    found = require_cuda("runs Triton kernels")
    import seqkernels.triton  # noqa: F401  (defines the ops)

    return found


def pair(cell):
    return get(f"{cell}_sequence_triton"), get(f"{cell}_sequence_triton_backward")


def both(cell, values, layout):
    """Every result of the forward, and every gradient for a loss of its outputs and states."""
    forward, backward = pair(cell)
    output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
    grad_c_n = c_n if c_n.numel() else None
    states = output, c_sequence, saved
    grads = backward(output, h_n, grad_c_n, None, values[1], *values[3:], *states, *layout)
    return [output, h_n, c_n, c_sequence, *grads]


def assert_equal(found, expected):
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"result {i}"


@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_options(cell, case, device):
    check_sequence(cell, case, torch.bfloat16, *pair(cell), device=device)


@pytest.mark.parametrize("cell", CELLS)
def test_repeats_are_bit_equal(cell, device):
    values, layout = inputs_of(cell, Case(50, 16, 512), torch.bfloat16, device)
    first = both(cell, values, layout)
    for _ in range(4):
        assert_equal(both(cell, values, layout), first)


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_a_graph_holds_forward_and_backward(case, device):
    values, layout = inputs_of("lstm", case, torch.float16, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both("lstm", values, layout)  # compiles what is captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both("lstm", values, layout)
    values[0].copy_(torch.randn_like(values[0]))
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert_equal(captured, both("lstm", values, layout))


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_the_current_stream_is_used(case, device):
    values, layout = inputs_of("gru", case, torch.bfloat16, device)
    expected = both("gru", values, layout)
    late = torch.full_like(values[0], float("nan"))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(values[0])
        found = both("gru", [late, *values[1:]], layout)
        late.fill_(float("nan"))
    side.synchronize()
    assert_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_nothing_waits_for_the_device(case, device):
    values, layout = inputs_of("lstm", case, torch.float16, device)
    both("lstm", values, layout)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # about half a second
        both("lstm", values, layout)
        done.record()
        came_back_early = not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert came_back_early


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_backward_gives_the_same(cell, device):
    values, layout = inputs_of(cell, Case(20, 8, 256), torch.float32, device)
    leaves = [None if v is None else v.requires_grad_() for v in values]
    wanted = [leaf for leaf in leaves if leaf is not None]
    output = pair(cell)[0](*leaves, *layout, True)[0]
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, wanted, grad, retain_graph=True)
    assert_equal(torch.autograd.grad(output, wanted, grad), first)


def test_the_device_of_the_tensors_is_used():
    device = require_cuda("a device that is not the current one", 2)
    values, layout = inputs_of("lstm", LAYOUTS["lengths"], torch.float16, "cpu")

    def on(place):
        return [
            [x.to(place) if isinstance(x, torch.Tensor) else x for x in part]
            for part in (values, layout)
        ]

    here = both("lstm", *on("cuda:0"))
    with torch.cuda.device(0):
        there = both("lstm", *on(device))
        assert torch.cuda.current_device() == 0
    assert all(x.device == device for x in there if x.numel())
    assert_equal([x.cpu() for x in there], [x.cpu() for x in here])
