"""The schedule and tile sizes for a shape: host only, no Triton, tested without a GPU.

Three schedules: "sliced" (one program owns a batch slice), "persistent" (a group of
programs shares it) and "stepwise" (a product through torch and a cell kernel each step). The
candidates of a shape are few, pruned by registers, shared memory and co-residency, and ordered by
estimate.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

import torch

from ..cells import CELLS, CellSpec
from .estimate import CLEARLY, PYTHON_PAIR, Device, fused_cost, products, stepwise_cost, width

# Accumulator values that a thread may hold without spilling, as compiled for sm_80, 90 and 100:
# with the depth split over warps and not, by kind of product (16 bits, TF32, no tensor cores).
_ACCUMULATOR = {
    True: {"16": 16, "tf32": 16, "ieee": 16},
    False: {"16": 16, "tf32": 16, "ieee": 8},
}
# Limits of resident weights, beyond which registers spill: chunks of a product's depth where loads
# are short, and bytes of a column with tiles of more than 128 values.
_SHORT_CHUNKS, _WIDE_BYTES = 8, 3072
# Shared memory left for what the compiler keeps there besides what is multiplied.
_SHARED_RESERVE = 4 << 10


def span(hidden_size: int, itemsize: int) -> int:
    """The largest power of two that divides H, up to the elements of a load of 16 bytes.

    H is passed to kernels as a number of spans, which tells the compiler how far it may vectorise.
    Without that, where H is no multiple of 16, every element has an address of its own, and the
    addresses spill.
    """
    return gcd(hidden_size, 16 // itemsize)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run a sequence.

    Attributes:
        schedule: "sliced", "persistent" or "stepwise"; the last has no tiles.
        block_n, block_h, block_k: rows, units and depth of a tile; with `split`, depth of one warp.
        num_warps, num_stages: as Triton means them.
        split: warps that share the depth of a product, or 1 (persistent alone).
        resident: the weights stay in shared memory (persistent with split alone).
    """

    schedule: str
    block_n: int = 0
    block_h: int = 0
    block_k: int = 0
    num_warps: int = 4
    num_stages: int = 3
    split: int = 1
    resident: bool = False

    def members(self, hidden_size: int) -> int:
        """Programs that share a batch slice."""
        return -(-hidden_size // self.block_h) if self.schedule == "persistent" else 1

    def grid(self, batch: int, hidden_size: int) -> tuple[int]:
        """Programs of the launch."""
        return (-(-batch // self.block_n) * self.members(hidden_size),)

    def chunks(self, spec: CellSpec, hidden_size: int, direction: str) -> tuple[int, ...]:
        """Chunks of the depth of each product."""
        chunk = self.split * self.block_k
        return tuple(-(-depth * hidden_size // chunk) for _, depth in products(spec, direction))

    def shared_bytes(self, spec: CellSpec, hidden_size: int, direction: str, itemsize: int) -> int:
        """An upper estimate of the shared memory of one program."""
        chunk, widest = self.split * self.block_k, 0
        chunks = self.chunks(spec, hidden_size, direction)
        weights = 0
        for (gates, _), count in zip(products(spec, direction), chunks, strict=True):
            columns = width(gates) * self.block_h
            weights += count * chunk * columns * itemsize
            stages = self.num_stages * chunk * (columns + self.block_n) * itemsize
            widest = max(widest, self.split * self.block_n * columns * 4)
            widest = widest if self.resident else max(widest, stages)
        if not self.resident:
            return widest
        return weights + max(sum(chunks) * chunk * self.block_n * itemsize, widest)

    def refusal(
        self, device: Device, spec: CellSpec, batch: int, hidden_size: int, direction: str,
        itemsize: int,
    ) -> str | None:  # fmt: skip
        """Why this plan must not be launched, or None."""
        if self.schedule == "stepwise":
            return None
        shared = self.shared_bytes(spec, hidden_size, direction, itemsize)
        if shared + _SHARED_RESERVE > device.shared_memory:
            return (
                f"a program needs {shared} bytes of shared memory, the device gives "
                f"{device.shared_memory}"
            )
        (programs,) = self.grid(batch, hidden_size)
        if self.members(hidden_size) > 1 and programs > device.multiprocessors:
            return (
                f"{programs} programs must be co-resident, the device has "
                f"{device.multiprocessors} multiprocessors"
            )
        return None

    def constants(self, spec: CellSpec, hidden_size: int, direction: str, itemsize: int) -> dict:
        """The keyword arguments of the launch that plan and shape decide."""
        options = {
            "SPAN": span(hidden_size, itemsize),
            "BLOCK_N": self.block_n,
            "BLOCK_H": self.block_h,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # The default changes between versions of Triton, with a warning.
            "enable_fp_fusion": True,
        }
        short = narrow(hidden_size, itemsize)
        if self.split == 1 or itemsize == 2 and (short or not self.resident):
            # All registers of a thread: the compiler would otherwise use fewer and spill. With
            # resident weights, and in float32 with a split depth, its own choice is better.
            options["maxnreg"] = 255
        if self.schedule == "sliced":
            return options
        alone = self.members(hidden_size) == 1
        options |= {"SPLIT": self.split, "ALONE": alone, "launch_cooperative_grid": not alone}
        chunks = self.chunks(spec, hidden_size, direction)
        options |= {"CHUNKS": chunks if self.resident else (0,) * len(chunks)}
        # Chunks that are loaded before the first is multiplied, as registers allow.
        return options | {"AHEAD": 2 if short else 8}


STEPWISE = Plan("stepwise")


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: torch's switch for float32 recurrent networks, read at call time.

    `fp32_precision` can always be read; the older `allow_tf32` raises once both have been used.
    """
    if dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


def narrow(hidden_size: int, itemsize: int) -> bool:
    """Whether loads are so short that addresses fill the registers, and tiles must be smaller."""
    return span(hidden_size, itemsize) < 4


def _persistent(hidden_size: int, itemsize: int, block_k: int, depth: int) -> Iterator[Plan]:
    """Several programs per batch slice; the smallest H fit one program."""
    # Where every warp takes a deep chunk, short products leave some of it empty, and the deepest
    # chunks spill.
    deepest = 16 if narrow(hidden_size, itemsize) else 32
    split_k = min(max(power_of_two(-(-depth // 4)), 16), block_k, deepest)
    for block_n in (16, 32):
        for block_h in (8, 16):
            if block_h < 2 * hidden_size:
                plan = Plan("persistent", block_n, block_h, split_k, 4, 2, split=4)
                yield replace(plan, resident=True)
                yield plan
    # Many rows: the warps share a tile instead.
    for block_n in (16, 32, 64):
        for block_h in (16, 32, 64):
            if block_h < 2 * hidden_size:
                yield Plan("persistent", block_n, block_h, block_k, 8, 3)


@lru_cache(maxsize=1024)
def candidates(
    cell: str, direction: str, itemsize: int, mode: str, batch: int, hidden_size: int,
    device: Device,
) -> tuple[Plan, ...]:  # fmt: skip
    """Every plan that may be launched, the cheapest estimate first.

    Args:
        cell: a key of `CELLS`.
        direction: "forward" or "backward".
        itemsize: bytes of a stored value.
        mode: what `precision` returns.
        batch: N.
        hidden_size: H.
        device: the GPU.
    """
    spec = CELLS[cell]
    short = narrow(hidden_size, itemsize)
    block_k = 16 if itemsize == 4 and mode == "ieee" else 128 // itemsize >> short
    depth = hidden_size * products(spec, direction)[0][1]
    plans = [Plan("sliced", n, h, block_k) for n in (16, 32) for h in (16, 32)]
    plans += _persistent(hidden_size, itemsize, block_k, depth)
    shape = (device, spec, batch, hidden_size, direction, itemsize)
    rows = (spec, hidden_size, direction, itemsize, mode)
    allowed = [p for p in plans if fits(p, *rows) and p.refusal(*shape) is None]
    costs = {p: fused_cost(p, *shape, mode) for p in allowed}
    costs[STEPWISE] = CLEARLY * stepwise_cost(*shape, mode, PYTHON_PAIR)
    return tuple(sorted(costs, key=costs.get))


def fits(
    plan: Plan, spec: CellSpec, hidden_size: int, direction: str, itemsize: int, mode: str
) -> bool:
    """Whether a program's tiles fit the registers: what has been compiled without spills."""
    threads, kind = 32 * plan.num_warps, "16" if itemsize == 2 else mode
    short = narrow(hidden_size, itemsize)
    columns = plan.block_h * max(width(gates) for gates, _ in products(spec, direction))
    accumulator = _ACCUMULATOR[plan.split > 1][kind]
    if plan.resident:
        chunks = plan.chunks(spec, hidden_size, direction)
        if kind == "ieee" or short and sum(chunks) > _SHORT_CHUNKS:
            return False
        column = max(chunks) * plan.split * plan.block_k * itemsize
        if plan.block_n * plan.block_h > 128 and column > _WIDE_BYTES:
            return False
        accumulator *= 2 if kind == "16" else 1
    elif len(spec.stages) > 1 and plan.split > 1 and kind == "tf32" and direction == "forward":
        # Two products a step: Triton 3.6 spills on sm_100 with the whole.
        accumulator //= 2
    units = 4 if kind == "ieee" else 8
    if plan.split > 1:
        if short and kind == "ieee" and direction == "forward":
            return False
        # The sums of the warps are added in registers.
        units = 8 // plan.num_warps // (2 if kind == "ieee" else 1)
    if short:
        units = max(units // 2, 1)
        accumulator //= 1 if kind == "ieee" else 2
    return (
        plan.split * plan.block_n * columns <= accumulator * threads
        and plan.block_n * plan.block_h <= units * threads
    )


@lru_cache(maxsize=1024)
def losing_batch(
    cell: str, itemsize: int, mode: str, hidden_size: int, device: Device, training: bool, pair: int
) -> int | None:
    """The batch from which on every fused plan clearly loses to a stepwise schedule, or None.

    Args:
        cell: a key of `CELLS`.
        itemsize: bytes of a stored value.
        mode: what `precision` returns.
        hidden_size: H.
        device: the GPU.
        training: the backward counts too.
        pair: microseconds of the host for a product and a cell kernel.
    """
    spec = CELLS[cell]
    for batch in (1 << i for i in range(4, 17)):
        fused = stepwise = 0.0
        for direction in ("forward", "backward")[: 1 + training]:
            shape = (device, spec, batch, hidden_size, direction, itemsize)
            plans = candidates(cell, direction, itemsize, mode, batch, hidden_size, device)
            fused += min(fused_cost(p, *shape, mode) for p in plans if p != STEPWISE)
            stepwise += stepwise_cost(*shape, mode, pair)
        if fused > CLEARLY * stepwise:
            # Smaller batches of the same power of two take the same plans.
            return batch // 2 + 1 if batch > 16 else 1
    return None
