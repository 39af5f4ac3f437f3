"""How the GPU ops behave among other work: streams, graphs, repeats, refusals, other devices.

CUDA's two schedules and Triton alike.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_cases import SUFFIXES, both, pair
from gpu import require_cuda
from parity import Case, inputs_of

from seqkernels.cells import CELLS

pytestmark = pytest.mark.cuda

# More rows than a slice takes, so that rows of mixed lengths are ordered on the device.
LENGTHS = (3, 6, 1, 9, 2, 6, 4, 0) * 5
LAYOUTS = {
    "padded": Case(9, 40, 256),
    "lengths": Case(9, 40, 256, lengths=LENGTHS),
    "packed": Case(4, 40, 256, batch_sizes=(40, 9, 9, 2)),
}


@pytest.fixture(autouse=True)
def device():
    return require_cuda("CUDA and Triton kernels")


def assert_equal(found, expected):
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), f"result {i}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cell", CELLS)
def test_repeats_are_bit_equal(cell, suffix, device):
    values, layout = inputs_of(cell, Case(50, 16, 512), torch.bfloat16, device)
    first = both(cell, suffix, values, layout)
    for _ in range(4):
        assert_equal(both(cell, suffix, values, layout), first)


@pytest.mark.parametrize("suffix", ["_persistent", "_triton"])
@pytest.mark.parametrize("hidden_size", [256, 768])
def test_long_repeats_are_bit_equal(hidden_size, suffix, device):
    """A race in the exchange, in a cluster or through L2, shows as a difference between runs."""
    values, layout = inputs_of("lstm", Case(1000, 16, hidden_size), torch.float16, device)
    first = both("lstm", suffix, values, layout)
    for _ in range(10):
        assert_equal(both("lstm", suffix, values, layout), first)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_cuda_graph(case, suffix, device):
    values, layout = inputs_of("lstm", case, torch.float16, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both("lstm", suffix, values, layout)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both("lstm", suffix, values, layout)
    values[0].copy_(torch.randn_like(values[0]))
    if layout[0] is not None:
        layout[0].copy_(layout[0].roll(11))  # a graph takes lengths as they are at its replay
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert_equal(captured, both("lstm", suffix, values, layout))


# What a capture must not do and no call of ours does: torch's context, and a handle of cuBLAS.
FIRST_CALL = """
import torch
from cuda_cases import both
from parity import Case, inputs_of

square = torch.randn(64, 64, device="cuda", dtype=torch.float16)
square @ square
values, layout = inputs_of("gru", Case(9, 16, 256), torch.float16, "cuda")
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = both("gru", {suffix!r}, values, layout)
graph.replay()
for one, other in zip(captured, both("gru", {suffix!r}, values, layout), strict=True):
    assert torch.equal(one, other)
"""


@pytest.mark.parametrize("suffix", ["", "_persistent"])
def test_the_first_call_of_a_process_may_be_captured(suffix, device):
    """Nothing has loaded the kernels or asked the device before."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(map(str, (tests.parent, tests, tests / "cuda")))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", FIRST_CALL.format(suffix=suffix)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_the_current_stream_is_used(case, suffix, device):
    values, layout = inputs_of("gru", case, torch.bfloat16, device)
    expected = both("gru", suffix, values, layout)
    late = torch.full_like(values[0], float("nan"))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(values[0])
        found = both("gru", suffix, [late, *values[1:]], layout)
        late.fill_(float("nan"))
    side.synchronize()
    assert_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_nothing_waits_for_the_device(case, suffix, device):
    values, layout = inputs_of("lstm", case, torch.float16, device)
    both("lstm", suffix, values, layout)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # about half a second
        both("lstm", suffix, values, layout)
        done.record()
        came_back_early = not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert came_back_early


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_second_backward_gives_the_same(cell, suffix, device):
    values, layout = inputs_of(cell, Case(20, 8, 256), torch.float32, device)
    leaves = [None if v is None else v.requires_grad_() for v in values]
    wanted = [leaf for leaf in leaves if leaf is not None]
    output = pair(cell, suffix)[0](*leaves, *layout, True)[0]
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, wanted, grad, retain_graph=True)
    assert_equal(torch.autograd.grad(output, wanted, grad), first)


@pytest.mark.parametrize("suffix", ["_persistent", "_triton"])
def test_many_launches_in_flight(suffix, device):
    """Persistent grids queue behind each other, on two streams, without a deadlock."""
    values, layout = inputs_of("lstm", Case(50, 16, 768), torch.float16, device)
    forward, _ = pair("lstm", suffix)
    expected = forward(*values, *layout, False)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for i in range(20):
        with torch.cuda.stream(streams[i % 2]):
            found.append(forward(*values, *layout, False)[0])
    torch.cuda.synchronize()
    assert_equal(found, [expected] * len(found))


def test_a_grid_that_cannot_be_resident_is_refused(device):
    """Before anything starts, and nothing is wrong afterwards."""
    forward, _ = pair("lstm", "_persistent")
    values, layout = inputs_of("lstm", Case(1, 512, 2048), torch.float16, device)
    with pytest.raises(RuntimeError, match="resident|fit on chip"):
        forward(*values, *layout, True)
    values, layout = inputs_of("lstm", Case(3, 8, 64), torch.float16, device)
    assert forward(*values, *layout, True)[0].isfinite().all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_device_of_the_tensors_is_used(suffix):
    device = require_cuda("a device that is not the current one", 2)
    values, layout = inputs_of("lstm", LAYOUTS["lengths"], torch.float16, "cpu")

    def on(place):
        return [
            [x.to(place) if isinstance(x, torch.Tensor) else x for x in part]
            for part in (values, layout)
        ]

    here = both("lstm", suffix, *on("cuda:0"))
    with torch.cuda.device(0):
        there = both("lstm", suffix, *on(device))
        assert torch.cuda.current_device() == 0
    assert all(x.device == device for x in there if x.numel())
    assert_equal([x.cpu() for x in there], [x.cpu() for x in here])
