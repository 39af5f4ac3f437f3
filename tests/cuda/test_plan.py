"""Plans of the persistent kernels, for thousands of shapes and several devices: pure host code."""

import itertools
import math as mathematics
import sys
from pathlib import Path

import pytest

from seqkernels import _extension
from seqkernels.cells import CELLS

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "scripts"))
import plans  # noqa: E402

pytestmark = pytest.mark.needs("cuda_build")


def plan(*shape, **options):
    return _extension.C.plan(*shape, **options)


MATHS = ("float16", "bfloat16", "tf32", "float32")
DEVICES = {
    "H100": {},
    "A100": {"processors": 108, "shared_per_block": 163 << 10, "max_cluster": 1},
    "small": {"processors": 16, "shared_per_block": 99 << 10, "max_cluster": 8},
}
HIDDEN = (1, 5, 32, 100, 128, 200, 256, 384, 512, 650, 768, 1000, 1024, 1536, 2048, 3072, 5000)
BATCH = (1, 2, 7, 8, 13, 16, 32, 64, 100, 128, 256, 1000)
# plan.h
TILE_ROWS, PER_THREAD, MAX_WARPS, REGISTER_TILES = 16, 2, 8, ((24, 11), (10, 5))
STACKED_TILES = ((22, 10), (7, 4))  # of the backward of stacked layers


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_plan_holds_its_shape(cell, backward, device):
    planned = 0
    for math, hidden, batch in itertools.product(MATHS, HIDDEN, BATCH):
        p = plan(cell, math, backward, batch, hidden, **device)
        where = f"{cell} {math} H={hidden} N={batch}"
        if p["refusal"]:
            continue
        planned += 1
        limits = {"processors": 132, "shared_per_block": 227 << 10, "max_cluster": 16, **device}
        assert p["shared_bytes"] <= limits["shared_per_block"], where
        assert p["units"] * p["blocks"] >= hidden, where
        assert p["rows"] * p["slices"] >= batch > p["rows"] * (p["slices"] - 1), where
        assert p["warps"] <= MAX_WARPS, where
        assert p["units"] * p["rows"] <= p["warps"] * 32 * PER_THREAD, where
        assert p["pieces"] == 1 or (backward and p["exchange"] == "L2"), where
        # 16-byte chunks never leave a gate, and a slice is a whole number of them.
        assert p["units"] % 8 == 0, where
        if p["exchange"] == "none":
            assert p["blocks"] == 1, where
        elif p["exchange"] == "cluster":
            assert p["blocks"] <= limits["max_cluster"], where
            assert p["blocks"] & (p["blocks"] - 1) == 0, where
        else:
            assert p["blocks"] * p["slices"] <= limits["processors"], f"{where}: not co-resident"
            assert p["exchange_bytes"] > 0, where
        element = 2 if math in ("float16", "bfloat16") else 4
        held = REGISTER_TILES[math == "float32"][len(p["phases"]) - 1]
        for phase in p["phases"]:
            assert phase["row_tiles"] * TILE_ROWS >= phase["rows"], where
            assert phase["row_tiles"] * phase["k_splits"] <= MAX_WARPS, where
            assert phase["per_warp"] * phase["k_splits"] >= phase["k_tiles"], where
            assert phase["per_warp"] - phase["streamed"] <= held, where
            k = phase["k_tiles"] * 32 // element
            assert k >= p["blocks"] * p["units"] * phase["in_width"], where
    assert planned > 200 if device != DEVICES["small"] else planned > 50


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("parts", [{"directions": 2}, {"layers": 2}, {"layers": 4}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_joined_launches_hold_all_their_parts(cell, parts, device):
    limits = {"processors": 132, "shared_per_block": 227 << 10, "max_cluster": 16, **device}
    (count,) = parts.values()
    joined, apart = [0, 0], 0
    for math, hidden, batch, backward in itertools.product(MATHS, HIDDEN, BATCH, (False, True)):
        p = plan(cell, math, backward, batch, hidden, **parts, **device)
        alone = plan(cell, math, backward, batch, hidden, **device)
        where = f"{cell} {math} H={hidden} N={batch} backward={backward}"
        if p["refusal"]:
            assert len(p) == 1, where
            apart += not alone["refusal"]
            continue
        joined[backward] += 1
        assert not alone["refusal"], f"{where}: no launch of its own"
        assert p["step_ns"] < count * alone["step_ns"], f"{where}: slower than apart"
        assert p["parts"] == count, where
        assert p["shared_bytes"] <= limits["shared_per_block"], where
        assert p["units"] * p["blocks"] >= hidden, where
        blocks = p["blocks"] * p["slices"] * count
        if p["exchange"] == "L2" or "layers" in parts:
            assert blocks <= limits["processors"], f"{where}: not co-resident"
            assert p["exchange_bytes"] > 0, where
        if p["exchange"] == "cluster" and "layers" in parts:
            # No multiprocessor is shared, and a cluster lies within a sixteenth to an eighteenth.
            most = limits["processors"] // 18 * (16 // p["blocks"])
            assert p["slices"] * count <= most, f"{where}: clusters not co-resident"
        if "layers" in parts:  # the feed's weights and what it multiplies, all in shared memory
            feed, gates = p["phases"][-1], CELLS[cell].gates
            element = 2 if math in ("float16", "bfloat16") else 4
            assert feed["per_warp"] == feed["streamed"], where
            assert feed["rows"] == p["units"] * (1 if backward else gates), where
            assert feed["in_width"] == (gates if backward else 1), where
            assert feed["row_tiles"] * TILE_ROWS >= feed["rows"], where
            assert feed["row_tiles"] * feed["k_splits"] <= MAX_WARPS, where
            assert feed["per_warp"] * feed["k_splits"] >= feed["k_tiles"], where
            k = feed["k_tiles"] * 32 // element
            assert k >= p["blocks"] * p["units"] * feed["in_width"], where
            assert feed["pieces"] == 1 or backward, where
            assert feed["k_tiles"] % feed["pieces"] == 0, where
            weights = feed["row_tiles"] * feed["k_tiles"] * TILE_ROWS * 32
            values = feed["k_tiles"] // feed["pieces"] * 32 * p["rows"]
            assert p["shared_bytes"] > weights + values, where
            tiles = STACKED_TILES[math == "float32"][len(p["phases"]) - 2]
            for phase in p["phases"][:-1] if backward else ():
                assert phase["per_warp"] - phase["streamed"] <= tiles, where
    assert min(joined) > (20 if device == DEVICES["small"] else 100)
    assert apart > 0


def test_what_does_not_share_a_launch_says_why():
    def reason(*shape, **parts):
        return plan("lstm", "float16", *shape, **parts)["refusal"]

    assert "would not all be resident on 132" in reason(False, 128, 1024, directions=2)
    assert "at most 8 layers" in reason(False, 16, 64, layers=9)
    assert "would not all be resident on 132" in reason(False, 8, 1984, layers=2)
    assert not reason(False, 16, 256, layers=4)
    assert not reason(True, 16, 1024, directions=2)
    assert not reason(True, 16, 256, layers=4)
    assert "would not all be resident on 132" in reason(True, 16, 1024, layers=2)
    with pytest.raises(ValueError, match="two directions"):
        plan("lstm", "float16", False, 16, 256, directions=2, layers=2)


def test_texts_of_joined_launches():
    both = plan("gru", "float16", False, 16, 512, directions=2)["text"]
    assert both.startswith("both directions in one launch, each float16")
    layers = plan("gru", "float16", False, 16, 256, layers=3)["text"]
    assert layers.startswith("3 layers in one launch, each float16")
    layers = plan("gru", "float16", True, 16, 256, layers=3)["text"]
    assert layers.startswith("3 layers in one launch, each float16")


@pytest.mark.parametrize(
    "cell, math, hidden, exchange",
    [
        ("lstm", "float16", 512, "cluster"),
        ("gru", "bfloat16", 512, "cluster"),
        ("lstm", "float16", 1024, "L2"),
        ("rnn_tanh", "float16", 64, "none"),
    ],
)
def test_exchange_of_known_shapes(cell, math, hidden, exchange):
    assert plan(cell, math, False, 16, hidden)["exchange"] == exchange


@pytest.mark.parametrize("backward", [False, True])
def test_capacity(backward):
    """What fits on an H100 and what must not be promised."""
    for cell in CELLS:
        for math in ("float16", "bfloat16"):
            for hidden in (100, 200, 256, 512, 650, 768, 1024):
                assert not plan(cell, math, backward, 16, hidden)["refusal"], (cell, hidden)
        assert "do not fit" in plan(cell, "float16", backward, 16, 20_000)["refusal"]


def test_a_refusal_has_a_reason_and_a_plan_a_text():
    assert plan("lstm", "float16", False, 0, 8)["refusal"]
    assert "too large" in plan("lstm", "float16", False, 1 << 30, 8)["refusal"]
    text = plan("lstm", "float16", False, 16, 768)["text"]
    assert "blocks of" in text
    assert "KB in registers" in text


def test_more_memory_never_loses_a_shape():
    for hidden in HIDDEN:
        small = plan("lstm", "float16", False, 16, hidden, shared_per_block=64 << 10)
        large = plan("lstm", "float16", False, 16, hidden)
        assert small["refusal"] or not large["refusal"]
        if not small["refusal"]:
            assert mathematics.isfinite(large["step_ns"])
            assert large["step_ns"] <= small["step_ns"]


@pytest.mark.parametrize("name", plans.BLOCKS)
def test_published_plans_are_what_the_extension_says(name):
    (found,) = plans.block(name).findall(plans.PAGE.read_text())
    assert found[1] == plans.BLOCKS[name](), "docs/cuda.md is stale: run python scripts/plans.py"


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown cell"):
        plan("peephole", "float16", False, 1, 8)
    with pytest.raises(ValueError, match="float64"):
        plan("lstm", "float64", False, 1, 8)
