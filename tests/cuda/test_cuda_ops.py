"""The CUDA ops on a GPU: parity from tiny to full size, and how they behave among other work.

The kernels' logic is proved on the emulator; here stands what only a device can show.
SEQKERNELS_MAX_CLUSTER=1 makes every group exchange through L2: run the file both ways.
"""

import pytest
import torch
from gpu import require_cuda
from parity import Case, actual, check_cell, check_sequence, inputs_of

from seqkernels import _extension
from seqkernels.cells import CELLS
from seqkernels.ops import get

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = {
    "T1-N1-H1": Case(1, 1, 1),
    "T7-N3-H5": Case(7, 3, 5),
    "T30-N33-H100": Case(30, 33, 100),
    "T20-N13-H200-reverse": Case(20, 13, 200, reverse=True),
    "T12-N16-H256-no-bias": Case(12, 16, 256, bias=False),
    "lengths": Case(9, 11, 650, lengths=(3, 6, 1, 9, 2, 6, 4, 4, 2, 1, 2)),
    "lengths-reverse": Case(6, 5, 72, lengths=(3, 6, 1, 5, 0), reverse=True),
    "packed": Case(4, 9, 130, batch_sizes=(9, 3, 3, 1)),
    "packed-reverse": Case(4, 5, 40, batch_sizes=(5, 3, 3, 1), reverse=True),
    "reset-lengths-reverse": Case(6, 4, 40, lengths=(3, 5, 1, 4), reset=True, reverse=True),
}
FULL = {
    "T1000-N16-H512": Case(1000, 16, 512),
    "T1000-N16-H768": Case(1000, 16, 768),
    "T500-N32-H1024": Case(500, 32, 1024),
    "T200-N128-H256": Case(200, 128, 256),
    "T300-N1-H650": Case(300, 1, 650),
}
MATHS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}


@pytest.fixture(autouse=True)
def device():
    return require_cuda("CUDA kernels")


@pytest.fixture
def math(request):
    """(name, dtype, tf32), with torch's switch for recurrent layers set to it."""
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if request.param == "tf32" else "ieee"
    yield request.param, *MATHS[request.param]
    rnn.fp32_precision = before


def pair(cell, suffix):
    return get(f"{cell}_sequence{suffix}"), get(f"{cell}_sequence{suffix}_backward")


def refusal(cell, case, dtype, **joined):
    name = str(dtype).removeprefix("torch.")
    sizes = (case.batch, case.hidden_size)
    return _extension.C.persistent_refusal(cell, name, *sizes, training=True, **joined)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, hidden_size", [(1, 17), (3, 5), (2, 100), (128, 1024)])
@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if spec.pointwise])
def test_cell(cell, rows, hidden_size, dtype, device):
    functions = get(f"{cell}_cell"), get(f"{cell}_cell_backward")
    check_cell(cell, rows, hidden_size, dtype, *functions, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_stepwise(cell, case, dtype, device):
    check_sequence(cell, case, dtype, *pair(cell, ""), device=device)


@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("cell", CELLS)
def test_persistent(cell, case, math, device):
    _, dtype, tf32 = math
    if refusal(cell, case, dtype) is None:
        check_sequence(cell, case, dtype, *pair(cell, "_persistent"), device=device, tf32=tf32)
    else:
        # Only strict float32 may find no room among these sizes.
        assert math[0] == "float32" and case.hidden_size > 256


@pytest.mark.parametrize("math", MATHS, indirect=True)
@pytest.mark.parametrize("case", FULL.values(), ids=FULL)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_persistent_at_full_size(cell, case, math, device):
    name, dtype, tf32 = math
    reason = refusal(cell, case, dtype)
    if reason is None:
        check_sequence(cell, case, dtype, *pair(cell, "_persistent"), device=device, tf32=tf32)
    else:
        assert "fit" in reason or "resident" in reason or "hold" in reason, reason
    if case.hidden_size <= 512 and name in ("float16", "bfloat16"):
        assert reason is None


@pytest.mark.parametrize("suffix", ["", "_persistent"])
@pytest.mark.parametrize("cell", CELLS)
def test_two_runs_are_bit_equal(cell, suffix, device):
    values, layout = inputs_of(cell, Case(50, 16, 512), torch.bfloat16, device)
    first, second = (actual(cell, values, layout, *pair(cell, suffix)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("suffix", ["", "_persistent"])
@pytest.mark.parametrize("options", [{}, {"batch_sizes": (16, 9, 9, 2)}], ids=["padded", "packed"])
def test_cuda_graph(suffix, options, device):
    case = Case(4, 16, 256, **options)
    values, layout = inputs_of("lstm", case, torch.float16, device)
    forward, backward = pair("lstm", suffix)

    def both():
        output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
        grads = backward(
            output, h_n, c_n, None, values[1], *values[3:], output, c_sequence, saved, *layout
        )
        return [output, h_n, c_n, *grads]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    values[0].copy_(torch.randn_like(values[0]))
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, both(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("suffix", ["", "_persistent"])
def test_the_current_stream_is_used(suffix, device):
    values, layout = inputs_of("gru", Case(20, 8, 256), torch.bfloat16, device)
    forward, _ = pair("gru", suffix)
    expected = forward(*values, *layout, True)[0].clone()
    late = torch.full_like(values[0], float("nan"))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(values[0])
        found = forward(late, *values[1:], *layout, True)[0]
        late.fill_(float("nan"))
    side.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("suffix", ["", "_persistent"])
def test_nothing_waits_for_the_device(suffix, device):
    cases = [
        Case(9, 8, 256, lengths=(3, 6, 1, 9, 2, 6, 4, 4)),
        Case(3, 8, 64, batch_sizes=(8, 4, 1)),
    ]
    for case in cases:
        values, layout = inputs_of("lstm", case, torch.float16, device)
        forward, backward = pair("lstm", suffix)
        forward(*values, *layout, True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            output, h_n, _, c_sequence, saved = forward(*values, *layout, True)
            backward(
                output, h_n, None, None, values[1], *values[3:], output, c_sequence, saved, *layout
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("suffix", ["", "_persistent"])
def test_a_second_backward_gives_the_same(suffix, device):
    values, layout = inputs_of("lstm", Case(20, 8, 256), torch.float32, device)
    leaves = [v.requires_grad_() for v in values]
    output = pair("lstm", suffix)[0](*leaves, *layout, True)[0]
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, leaves, grad, retain_graph=True)
    second = torch.autograd.grad(output, leaves, grad)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_many_launches_in_flight(device):
    """Persistent grids queue behind each other, on two streams, without a deadlock."""
    values, layout = inputs_of("lstm", Case(50, 16, 768), torch.float16, device)
    forward, _ = pair("lstm", "_persistent")
    expected = forward(*values, *layout, False)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for i in range(20):
        with torch.cuda.stream(streams[i % 2]):
            found.append(forward(*values, *layout, False)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(f, expected) for f in found)
