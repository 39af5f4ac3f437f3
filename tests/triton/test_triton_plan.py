"""Plans and refusals: host code alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import seqkernels.triton
from seqkernels import dispatch
from seqkernels.cells import CELLS, CellSpec, Stage
from seqkernels.triton.estimate import COMPILED_PAIR, PYTHON_PAIR, Device
from seqkernels.triton.layout import Run, layout_of
from seqkernels.triton.plan import (
    STEPWISE,
    Plan,
    candidates,
    fits,
    losing_batch,
    narrow,
    precision,
    span,
)

H100 = Device(132, 227 << 10)
SIZES = [(1, 1), (13, 100), (16, 512), (16, 1024), (64, 1024), (300, 650), (4096, 200), (2, 5000)]
KINDS = [(2, "ieee"), (4, "tf32"), (4, "ieee")]
ROOT = Path(__file__).parents[2]


def test_h_is_carried_in_float32_where_a_step_reads_it_beside_its_product():
    first = {cell: layout_of(spec).first_carried for cell, spec in CELLS.items()}
    assert first == {"lstm": 1, "gru": 0, "gru_reset_before": 0, "rnn_tanh": 1, "rnn_relu": 1}


def test_products_of_the_backward_are_runs_of_gates_in_one_tensor():
    def runs(spec):
        return [stage.runs for stage in layout_of(spec).stages]

    assert runs(CELLS["lstm"]) == [(Run(False, 0, 0, 4),)]
    assert runs(CELLS["gru"]) == [(Run(False, 0, 0, 2), Run(True, 0, 2, 1))]
    assert runs(CELLS["gru_reset_before"]) == [(Run(False, 0, 0, 2),), (Run(False, 2, 2, 1),)]
    spec = CellSpec("middle", gates=5, states=1, separate=(1, 2, 4))
    pieces = (Run(False, 0, 0, 1), Run(True, 0, 1, 2), Run(False, 3, 3, 1), Run(True, 2, 4, 1))
    assert runs(spec) == [pieces]


def test_what_kernels_are_told_of_a_cell_is_the_same_text_in_every_process():
    """Triton keeps compiled kernels under it."""
    for spec in CELLS.values():
        assert " at 0x" not in repr(layout_of(spec))


def test_every_column_of_grad_gates_h_is_one_stages():
    stages = (Stage(0, 2, (0, 1), (0,), (1,)), Stage(2, 1, (2,), (1,), (0,)))
    spec = CellSpec("two", 3, 1, saved=2, parameters=2, separate=(2,), stages=stages)
    # The gradient of gate 2, then those of the parameters.
    assert [stage.beside_at for stage in layout_of(spec).stages] == [(-1, -1, 0), (0, 1, -1)]


@pytest.mark.parametrize("cell", CELLS)
def test_every_shape_has_a_plan_that_cannot_hang(cell):
    spec = CELLS[cell]
    for batch, hidden_size in SIZES:
        for itemsize, mode in KINDS:
            for direction in ("forward", "backward"):
                plans = candidates(cell, direction, itemsize, mode, batch, hidden_size, H100)
                assert {"sliced", "stepwise"} <= {plan.schedule for plan in plans}
                # Few: each that is tried costs a compilation.
                assert len(plans) <= 24
                for plan in plans:
                    if plan == STEPWISE:
                        continue
                    assert fits(plan, spec, hidden_size, direction, itemsize, mode)
                    alone = plan.members(hidden_size) == 1
                    assert alone or plan.grid(batch, hidden_size)[0] <= H100.multiprocessors
                    assert plan.shared_bytes(spec, hidden_size, direction, itemsize) < 227 << 10
                    launch = plan.constants(spec, hidden_size, direction, itemsize)
                    assert alone or launch["launch_cooperative_grid"]


def test_a_grid_that_is_not_co_resident_is_refused_with_the_numbers():
    plan = Plan("persistent", 16, 16, 64, split=4)
    reason = plan.refusal(H100, CELLS["lstm"], 64, 1024, "forward", 2)
    assert reason == "256 programs must be co-resident, the device has 132 multiprocessors"
    assert plan.refusal(H100, CELLS["lstm"], 32, 1024, "forward", 2) is None


def test_shared_memory_is_refused_with_the_numbers():
    plan = Plan("persistent", 64, 64, 64, split=4, resident=True)
    reason = plan.refusal(H100, CELLS["lstm"], 16, 1024, "forward", 2)
    assert reason == "a program needs 786432 bytes of shared memory, the device gives 232448"


def test_large_recurrences_are_shared_and_keep_their_weights():
    for cell in ("lstm", "gru", "gru_reset_before"):
        for direction in ("forward", "backward"):
            best = candidates(cell, direction, 2, "ieee", 16, 1024, H100)[0]
            assert best.schedule == "persistent" and best.resident and best.members(1024) > 1


def test_spans_are_the_widest_loads_that_a_row_allows():
    assert [span(h, 2) for h in (1024, 100, 650, 37, 8)] == [8, 4, 2, 1, 8]
    assert [span(h, 4) for h in (1024, 100, 650, 37, 8)] == [4, 4, 2, 1, 4]
    assert [narrow(h, 2) for h in (1024, 100, 650, 37)] == [False, False, True, True]
    for size in range(1, 200):
        for itemsize in (2, 4):
            assert size % span(size, itemsize) == 0 and span(size, itemsize) * itemsize <= 16


def test_rows_without_alignment_get_smaller_tiles():
    """Their addresses fill the registers: what the compiler was seen to spill is no candidate."""
    for cell in CELLS:
        for direction in ("forward", "backward"):

            def largest(hidden_size):
                plans = candidates(cell, direction, 2, "ieee", 16, hidden_size, H100)  # noqa: B023
                return max(p.block_n * p.block_h * p.block_k for p in plans)

            assert largest(511) < largest(512)


def test_stepwise_runs_what_every_fused_schedule_is_slow_at():
    """Large batches of large recurrences; never a small one, whatever launches cost."""
    for cell in CELLS:
        for direction in ("forward", "backward"):
            large = candidates(cell, direction, 2, "ieee", 1024, 2048, H100)
            assert large[0] == STEPWISE
            small = candidates(cell, direction, 2, "ieee", 16, 256, H100)
            assert small[0] != STEPWISE and STEPWISE in small
        for training in (False, True):
            facts = (H100, training, COMPILED_PAIR)
            assert 16 < losing_batch(cell, 2, "ieee", 2048, *facts) <= 1024
            assert losing_batch(cell, 2, "ieee", 64, *facts) is None
            # The dearer the launches, the more shapes the fused schedules keep.
            dear = losing_batch(cell, 2, "ieee", 2048, H100, training, 100 * PYTHON_PAIR)
            assert dear is None or dear > losing_batch(cell, 2, "ieee", 2048, *facts)


def test_the_launch_refuses_a_plan_that_could_hang():
    """Before any kernel starts: the message is all that a CPU tensor gets."""
    from seqkernels.triton import launch

    zeros = torch.zeros
    with pytest.raises(RuntimeError, match=r"132 multiprocessors"):
        launch.forward(
            "rnn_tanh",
            zeros(1, 64, 1024),
            zeros(1024, 1024),
            None,
            zeros(64, 1024),
            None,
            None,
            None,
            None,
            False,
            False,
            plan=Plan("persistent", 16, 16, 16, split=4),
        )


def call(**changes):
    facts = {
        "cell": "lstm",
        "device": torch.device("cuda"),
        "dtype": torch.float16,
        "steps": 3,
        "batch": 2,
        "hidden_size": 8,
        "input_size": 8,
    }
    return dispatch.Call(**(facts | changes))


def test_can_run_gives_reasons(monkeypatch):
    can_run = seqkernels.triton.can_run
    assert "float64" in can_run(call(dtype=torch.float64))
    assert "cpu" in can_run(call(device=torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in can_run(call())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert can_run(call()) is None
    monkeypatch.setattr(seqkernels.triton, "_INSTALLED", False)
    assert can_run(call()) == "triton is not installed"


SWITCHES = """
import torch
from seqkernels.triton.plan import precision
cudnn, found = torch.backends.cudnn, []
def note():
    found.append(precision(torch.float32))
note()
cudnn.allow_tf32 = False; note()
cudnn.allow_tf32 = True; note()
cudnn.rnn.fp32_precision = "ieee"; note()
cudnn.rnn.fp32_precision = "tf32"; note()
cudnn.allow_tf32 = False; note()
assert precision(torch.float16) == precision(torch.bfloat16) == "ieee"
print(*found)
"""


@pytest.mark.exhaustive
def test_products_follow_torchs_switch_old_and_new():
    """The two ways of setting it, mixed: reading must not raise."""
    run = subprocess.run(
        [sys.executable, "-c", SWITCHES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["tf32", "ieee", "tf32", "ieee", "tf32", "ieee"]


def test_precision_is_read_at_call_time(monkeypatch):
    found = iter(["tf32", "ieee"])

    class Switch:
        @property
        def fp32_precision(self):
            return next(found)

    monkeypatch.setattr(torch.backends.cudnn, "rnn", Switch(), raising=False)
    assert [precision(torch.float32), precision(torch.float32)] == ["tf32", "ieee"]
