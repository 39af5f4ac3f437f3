"""What a step costs, in clocks: an estimate from data-sheet rates that orders the plans.

None of these numbers has been measured yet; `make gpu` and bench/results are to replace them.
`SEQKERNELS_TRITON_TUNE=1` measures the best few plans instead (tune.py).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from ..cells import CellSpec
from .layout import layout_of

if TYPE_CHECKING:
    from .plan import Plan

# Clocks: a counter exchanged through L2, and the program's own barrier.
_EXCHANGE, _BARRIER = 1500, 100
# Bytes per clock: what one multiprocessor reads from L2 and from shared memory, and what all of
# them together read from L2.
_L2_RATE, _SHARED_RATE, _L2_TOTAL = 64, 128, 3000
# Multiply-adds per clock of one multiprocessor, in 16 bits, in TF32 and in plain float32: with the
# small tiles of a fused kernel, and half of what an H100 can do, for a library's large product.
_TILE_RATE = {"16": 512, "tf32": 256, "ieee": 64}
_LIBRARY_RATE = {"16": 1024, "tf32": 512, "ieee": 64}
_CLOCKS_PER_MICROSECOND = 1700
# Microseconds that the host needs for one product and one cell kernel: called from C++ one after
# another, and from Python through Triton's launcher.
COMPILED_PAIR, PYTHON_PAIR = 10, 30
# A stepwise schedule is preferred to a fused one only where the latter's estimate is this many
# times its own: neither estimate is more accurate than that.
CLEARLY = 1.5


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan depends on: multiprocessors, and bytes of shared memory of a program."""

    multiprocessors: int
    shared_memory: int


@lru_cache(maxsize=16)
def device_of(device: torch.device) -> Device:
    """The numbers of a CUDA device; for any other, as in the interpreter, those of an H100."""
    if device.type != "cuda":
        return Device(132, 227 << 10)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def width(gates: int) -> int:
    """Columns of a unit in a wide product: the gates, to a power of two."""
    return 4 if gates > 2 else gates


def products(spec: CellSpec, direction: str) -> tuple[tuple[int, int], ...]:
    """The recurrent products of a step by stages: (gates, depth / hidden_size) of each."""
    stages = layout_of(spec).stages
    if direction == "forward":
        return tuple((stage.gates, 1) for stage in stages)
    return tuple((1, run.gates) for stage in stages for run in stage.runs)


def fused_cost(
    plan: "Plan", device: Device, spec: CellSpec, batch: int, hidden_size: int, direction: str,
    itemsize: int, mode: str,
) -> float:  # fmt: skip
    """Estimated clocks of one step of a launch that runs the whole sequence."""
    shared = plan.members(hidden_size) > 1
    step = 40.0 * plan.block_n * plan.block_h / 128
    for gates, depths in products(spec, direction):
        # The padding to a power of two is multiplied, but not loaded.
        depth, wide = depths * hidden_size, plan.block_h * width(gates)
        real = min(plan.block_h, hidden_size) * gates
        step += plan.block_n * depth * itemsize / _L2_RATE
        step += real * depth * itemsize / (_SHARED_RATE if plan.resident else _L2_RATE)
        step += plan.block_n * wide * depth / _TILE_RATE["16" if itemsize == 2 else mode]
    tiles = 1 if plan.schedule == "persistent" else -(-hidden_size // plan.block_h)
    waves = -(-plan.grid(batch, hidden_size)[0] // device.multiprocessors)
    return waves * (tiles * step + len(spec.stages) * (_EXCHANGE if shared else _BARRIER))


def stepwise_cost(
    device: Device, spec: CellSpec, batch: int, hidden_size: int, direction: str, itemsize: int,
    mode: str, pair: int,
) -> float:  # fmt: skip
    """Estimated clocks of one step that is a product and a cell kernel, `pair` microseconds each.

    Launches overlap with the work before them, so the longer of the two counts.
    """
    launches = pair * len(spec.stages) * _CLOCKS_PER_MICROSECOND
    rate = device.multiprocessors * _LIBRARY_RATE["16" if itemsize == 2 else mode]
    weights = spec.gates * hidden_size * hidden_size
    values = batch * hidden_size * (3 * spec.gates + spec.saved + 4)
    return max(launches, batch * weights / rate + (weights + values) * itemsize / _L2_TOTAL)
