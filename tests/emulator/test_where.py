"""Variants of the persistent kernel that show where the time of a step goes."""

import pytest
import torch
from emulated_machine import EmulatedMachine
from emulator import SCHEDULES

from bench.gpu import libraries, where

pytestmark = [pytest.mark.needs("headers"), pytest.mark.exhaustive]

VARIANTS = [name.removeprefix("where_") for name in libraries.SOURCES if "where" in name]
# H in the rehearsal is a sixteenth; the largest cluster decides the exchange.
EXCHANGES = {"L2": (768, 1), "cluster": (512, 16)}
DIRECTIONS = {"forward": False, "backward": True}
directions = pytest.mark.parametrize("direction", DIRECTIONS)
exchanges = pytest.mark.parametrize("exchange", EXCHANGES)


def kernel(direction, exchange, schedule=None):
    found = where.Kernel(EmulatedMachine(schedule), DIRECTIONS[direction], *EXCHANGES[exchange])
    assert found.plan["exchange"] == exchange and found.plan["blocks"] > 1
    return found


def results(kernel, variant):
    """What a variant writes into cleared tensors."""
    names = where.BACKWARD[-3:] if kernel.backward else where.FORWARD[-5:]
    for name in names:
        kernel.tensors[name].zero_()
    kernel.run(variant)
    return {name: kernel.tensors[name].clone() for name in names}


@exchanges
@directions
def test_the_whole_variant_is_the_op(direction, exchange):
    found = kernel(direction, exchange)
    where.whole(found)
    name = "grad_h_0" if found.backward else "h_n"
    real = found.expected
    found.expected = lambda: real() | {name: real()[name] + 1}
    with pytest.raises(RuntimeError, match=f"{name} is not what the op computes"):
        where.whole(found)


@pytest.mark.parametrize("schedule", SCHEDULES)
@exchanges
@directions
def test_variants_run_clean(direction, exchange, schedule):
    """Without a part the numbers are others; with stamps they are the same."""
    found = kernel(direction, exchange, schedule)
    name = "grad_c_0" if found.backward else "c_n"
    whole = results(found, "whole")
    assert whole[name].isfinite().all() and whole[name].any()
    for variant in VARIANTS:
        own = results(found, variant)
        same = all(torch.equal(own[n], whole[n]) for n in whole)
        assert same == (variant in ("whole", "stamped")), variant
        assert own[name].isfinite().all() and own[name].any(), variant


@exchanges
@directions
def test_clocks_rise_from_point_to_point(direction, exchange):
    found = kernel(direction, exchange)
    record = where.clocks(found)
    # The emulator's clock counts its readings: nothing reads it between two points.
    assert record["clocks"] == dict.fromkeys(where.POINTS, 1.0)
    assert record["step_clocks"] == len(where.POINTS)
    assert len(record["steps"]) == found.steps - 2
    stamps = found.stamps().clone()
    stamps[2, 3] = 0
    found.stamps = lambda: stamps
    with pytest.raises(RuntimeError, match="did not rise"):
        where.clocks(found)


def test_stage():
    records = {name: measure() for name, measure in where.cases(EmulatedMachine())}
    assert len(records) == 4 * (2 + len(where.PARTS))
    assert next(iter(records)) == "forward, H=768, whole"
    for name, record in records.items():
        assert record["exchange"] == ("L2" if "768" in name else "cluster")
        if "without" in record:
            assert record["costs"] == record["whole_ns"] - record["ns"]
