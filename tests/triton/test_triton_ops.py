"""The registered ops: schemas, fakes, and what a process without the compiled module gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import seqkernels.triton  # noqa: F401  (defines the ops)
from seqkernels.cells import CELLS

ROOT = Path(__file__).parents[2]


def schema(name):
    return str(getattr(torch.ops.seqkernels, name).default._schema).split("(", 1)[1]


@pytest.mark.parametrize("cell", CELLS)
def test_schemas_are_those_of_the_compiled_ops(cell):
    pairs = [("sequence", "sequence_triton"), ("sequence_backward", "sequence_triton_backward")]
    if CELLS[cell].pointwise:
        pairs += [("cell", "cell_triton"), ("cell_backward", "cell_triton_backward")]
    for compiled, ours in pairs:
        if hasattr(torch.ops.seqkernels, f"{cell}_{compiled}"):
            assert schema(f"{cell}_{ours}") == schema(f"{cell}_{compiled}")


@pytest.mark.parametrize("cell", CELLS)
def test_fakes_have_the_shapes_of_the_results(cell):
    """On fake CUDA tensors: what torch.compile sees."""
    spec = CELLS[cell]
    with FakeTensorMode():
        gates_x = torch.empty(5, 3, spec.gates * 8, device="cuda")
        weight = torch.empty(spec.gates * 8, 8, device="cuda")
        h = torch.empty(3, 8, device="cuda")
        c = h if spec.states > 1 else None
        op = getattr(torch.ops.seqkernels, f"{cell}_sequence_triton")
        results = op(gates_x, weight, None, h, c, None, None, None, False, True)
        assert [tuple(x.shape) for x in results[:2]] == [(5, 3, 8), (3, 8)]
        assert results[4].numel() == 5 * 3 * spec.saved * 8
        output, _, _, c_sequence, saved = results
        kept = (output, c_sequence, saved, None, None, None, False)
        backward = getattr(torch.ops.seqkernels, f"{cell}_sequence_triton_backward")
        grads = backward(output, h, None, None, weight, None, h, c, *kept)
        assert grads[0].shape == gates_x.shape and grads[2].shape == h.shape
        assert grads[1].numel() == 5 * 3 * spec.separate_columns * 8


def test_ops_exist_without_the_compiled_module_and_without_triton():
    code = (
        "import sys; sys.modules['seqkernels._C'] = None; sys.modules['triton'] = None\n"
        "import torch, seqkernels, seqkernels.triton\n"
        "for name in ('lstm_sequence_triton', 'gru_cell_triton_backward'):\n"
        "    assert hasattr(torch.ops.seqkernels, name), name\n"
        "from seqkernels import dispatch\n"
        "call = dispatch.Call('lstm', torch.device('cuda'), torch.float32, 1, 1, 1, 1)\n"
        "print(seqkernels.triton.can_run(call))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "triton is not installed"
