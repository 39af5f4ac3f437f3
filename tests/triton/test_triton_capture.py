"""What the Triton ops do beside their kernels can be captured in a CUDA graph."""

import pytest
import torch
from dispatched import Dispatched

from seqkernels.cells import CELLS
from seqkernels.triton import launch
from seqkernels.triton.plan import STEPWISE, Plan

pytestmark = pytest.mark.needs("triton")

PLANS = {
    "sliced": Plan("sliced", 16, 16, 16),
    "persistent": Plan("persistent", 16, 64, 32),
    "stepwise": STEPWISE,
}
LAYOUTS = ("padded", "lengths", "packed", "reset")


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels that would be launched; none is."""
    import triton

    names = []

    def note(kernel, *args, grid, warmup, **kwargs):
        names.append(kernel.fn.__name__)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", note)
    return names


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_copied_from_the_host(cell, plan, layout, launches):
    """With the device "meta" in a GPU's place, where a copy from the host is an op like others."""
    spec, sizes, hidden_size = CELLS[cell], (6, 6, 4, 1), 8
    lead = (sum(sizes),) if layout == "packed" else (len(sizes), sizes[0])

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    columns = spec.gates * hidden_size
    gates_x, weight, bias = empty(*lead, columns), empty(columns, hidden_size), empty(columns)
    h_0, c_0 = (*(empty(sizes[0], hidden_size) for _ in range(spec.states)), None)[:2]
    how = (
        empty(sizes[0], dtype=torch.int64) if layout == "lengths" else None,
        torch.tensor(sizes) if layout == "packed" else None,
        empty(*lead, dtype=torch.bool) if layout == "reset" else None,
        True,
    )
    with Dispatched():
        results = launch.forward(cell, gates_x, weight, bias, h_0, c_0, *how, True, plan=plan)
        output, h_n, _, c_sequence, saved = results
        kept = (weight, bias, h_0, c_0, output, c_sequence, saved, *how)
        launch.backward(cell, output, h_n, None, None, *kept, plan=plan)
    assert len(launches) >= 2


@pytest.mark.parametrize("sizes", [(6, 6, 4, 1), (6, 6, 4), (6,)])
def test_places_of_packed_rows(sizes):
    """And each tensor begins where Triton wants it: anywhere else would be a kernel of its own."""
    batch, data = sizes[0], torch.empty(sum(sizes), 8)
    lengths, offsets = launch.row_layout(None, torch.tensor(sizes), batch, data)
    assert lengths.tolist() == [sum(size > n for size in sizes) for n in range(batch)]
    assert offsets.tolist() == [sum(sizes[:t]) for t in range(len(sizes))]
    for tensor in (lengths, offsets):
        assert tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def test_batch_sizes_that_do_not_fit_the_data_are_refused():
    data = torch.empty(16, 8, device="meta")
    with pytest.raises(RuntimeError, match="add up to 16 rows"):
        launch.row_layout(None, torch.tensor([6, 6, 4, 1]), 6, data)
