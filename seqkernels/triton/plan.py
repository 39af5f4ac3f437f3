"""Which schedule and tile sizes a shape gets: host only, no Triton, tested without a GPU.

The order of the candidates is an estimate from data-sheet rates, in clocks a step; no measurement
stands behind it yet. `SEQKERNELS_TRITON_TUNE=1` measures the best few of them instead (launch.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ..cells import CELLS, CellSpec

# Clocks: a counter exchanged through L2, and the program's own barrier.
_EXCHANGE, _BARRIER = 1500, 100
# Bytes per clock that one multiprocessor reads from L2 and from shared memory.
_L2_RATE, _SHARED_RATE = 64, 128
# Multiply-adds per clock of one multiprocessor: mma.sync in 16 bits, in TF32, and plain float32.
_MMA_RATE = {"16": 512, "tf32": 256, "ieee": 64}
# Accumulator values that a thread may hold without spilling, as compiled for sm_80, 90 and 100:
# with the depth split over warps and not, by kind of product (16 bits, TF32, no tensor cores).
_ACCUMULATOR = {
    True: {"16": 16, "tf32": 16, "ieee": 16},
    False: {"16": 32, "tf32": 32, "ieee": 8},
}
# Left of the shared memory for what the compiler keeps there beside the operands.
_SHARED_RESERVE = 4 << 10


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan must know of a GPU: multiprocessors, bytes of shared memory of a program."""

    multiprocessors: int
    shared_memory: int


@lru_cache(maxsize=16)
def device_of(device: torch.device) -> Device:
    """The facts of a CUDA device; of any other (the interpreter's) those of an H100."""
    if device.type != "cuda":
        return Device(132, 227 << 10)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, properties.shared_memory_per_block_optin)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to launch a sequence kernel.

    Attributes:
        cooperative: several programs share a slice of the batch; otherwise one owns it.
        block_n, block_h, block_k: rows, units and depth of a tile; with `split`, depth of one warp.
        split: parts of a product's depth, one per warp, or 1 (cooperative alone).
        resident: the weights stay in shared memory (cooperative with split alone).
        num_warps, num_stages: as Triton means them.
    """

    cooperative: bool
    block_n: int
    block_h: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    split: int = 1
    resident: bool = False

    def members(self, hidden_size: int) -> int:
        """Programs that share a slice of the batch."""
        return -(-hidden_size // self.block_h) if self.cooperative else 1

    def grid(self, batch: int, hidden_size: int) -> tuple[int]:
        """Programs of the launch."""
        return (-(-batch // self.block_n) * self.members(hidden_size),)

    def parts(self, spec: CellSpec, hidden_size: int, direction: str) -> tuple[int, int]:
        """Tiles of a product's depth: all, and of them those of separate hidden gradients."""
        part = self.split * self.block_k
        if direction == "forward":
            return -(-hidden_size // part), 0
        separate = -(-hidden_size // part) if spec.separate_hidden else 0
        rest = -(-(spec.gates - spec.separate_hidden) * hidden_size // part)
        return rest + separate, separate

    def shared_bytes(self, spec: CellSpec, hidden_size: int, direction: str, itemsize: int) -> int:
        """An upper estimate of the shared memory of one program."""
        columns = self.block_h * (width(spec.gates) if direction == "forward" else 1)
        part = self.split * self.block_k
        reduction = self.split * self.block_n * columns * 4
        if self.resident:
            tiles, _ = self.parts(spec, hidden_size, direction)
            weight = tiles * part * columns * itemsize
            return weight + max(tiles * part * self.block_n * itemsize, reduction)
        return max(self.num_stages * part * (columns + self.block_n) * itemsize, reduction)

    def refusal(
        self, device: Device, spec: CellSpec, batch: int, hidden_size: int, direction: str,
        itemsize: int,
    ) -> str | None:  # fmt: skip
        """Why this plan must not be launched, or None."""
        if self.cooperative and not spec.pointwise:
            return f"{spec.name} has two products a step: it runs one program per batch slice"
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

    def constants(self, spec: CellSpec, hidden_size: int, direction: str) -> dict:
        """The keyword arguments of the launch that the plan decides."""
        options = {
            "BLOCK_N": self.block_n,
            "BLOCK_H": self.block_h,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # The default changes between versions of Triton, with a warning.
            "enable_fp_fusion": True,
        }
        if self.split == 1:
            # All there are: the compiler would otherwise stop at 128 and spill. Where the depth is
            # split it does better by itself.
            options["maxnreg"] = 255
        if not self.cooperative:
            return options
        alone = self.members(hidden_size) == 1
        options |= {"SPLIT": self.split, "ALONE": alone, "launch_cooperative_grid": not alone}
        tiles, separate = self.parts(spec, hidden_size, direction) if self.resident else (0, 0)
        options["TILES"] = tiles
        return options if direction == "forward" else options | {"TILES_HN": separate}


def width(gates: int) -> int:
    """Columns of a unit in a wide product: the gates, to a power of two."""
    return 4 if gates > 2 else gates


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: torch's switch for float32 recurrent networks, read at call time.

    `fp32_precision` can always be read; the older `allow_tf32` raises once both have been used.
    """
    if dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def _power_of_two(n: int, low: int, high: int) -> int:
    return min(max(1 << (n - 1).bit_length(), low), high)


def _sliced(itemsize: int) -> Iterator[Plan]:
    """One program per slice of the batch; runs everything."""
    for block_n, warps in ((16, 4), (32, 4), (64, 8)):
        for block_h in (16, 32):
            yield Plan(False, block_n, block_h, 128 // itemsize, warps)


def _cooperative(hidden_size: int, itemsize: int, depth: int) -> Iterator[Plan]:
    """Several programs per slice; the smallest H fit one program."""
    for warps in (4, 8):
        # Short products leave parts of the depth empty when every warp takes a deep one.
        block_k = _power_of_two(-(-depth // warps), 16, 128 // itemsize)
        for block_n in (16, 32, 64):
            for block_h in (8, 16, 32, 64):
                if block_h >= 2 * hidden_size:
                    continue
                plan = Plan(True, block_n, block_h, block_k, warps, 2, warps)
                yield replace(plan, resident=True)
                yield plan
    # Many rows: the warps share a tile instead.
    for block_n in (16, 32, 64, 128):
        for block_h in (16, 32, 64):
            if block_h < 2 * hidden_size:
                yield Plan(True, block_n, block_h, 128 // itemsize, 8, 3)


def cost(
    plan: Plan, device: Device, spec: CellSpec, batch: int, hidden_size: int, direction: str,
    itemsize: int, mode: str,
) -> float:  # fmt: skip
    """Estimated clocks of one step of the whole launch."""
    columns = plan.block_h * (width(spec.gates) if direction == "forward" else 1)
    depth = hidden_size * (1 if direction == "forward" else spec.gates)
    tiles = 1 if plan.cooperative else -(-hidden_size // plan.block_h)
    alone = plan.members(hidden_size) == 1
    rate = _SHARED_RATE if plan.resident else _L2_RATE
    real = min(plan.block_h, hidden_size) * spec.gates * hidden_size * itemsize
    operand = plan.block_n * depth * itemsize / _L2_RATE
    weight = real / rate
    product = plan.block_n * columns * depth / _MMA_RATE["16" if itemsize == 2 else mode]
    pointwise = 40.0 * plan.block_n * plan.block_h / 128
    waves = -(-plan.grid(batch, hidden_size)[0] // device.multiprocessors)
    step = tiles * (operand + weight + product + pointwise)
    return waves * (step + (_BARRIER if alone else _EXCHANGE))


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
    depth = hidden_size * (1 if direction == "forward" else spec.gates - spec.separate_hidden)
    plans = [*_sliced(itemsize), *_cooperative(hidden_size, itemsize, depth)]
    shape = (device, spec, batch, hidden_size, direction, itemsize)
    kind = "16" if itemsize == 2 else mode
    allowed = [p for p in plans if fits(p, spec, direction, kind) and p.refusal(*shape) is None]
    return tuple(sorted(allowed, key=lambda p: cost(p, *shape, mode)))


def fits(plan: Plan, spec: CellSpec, direction: str, kind: str) -> bool:
    """Whether a program's tiles fit the registers; `kind` of product: "16", "tf32" or "ieee"."""
    threads = 32 * plan.num_warps
    columns = plan.block_h * (width(spec.gates) if direction == "forward" else 1)
    accumulator = _ACCUMULATOR[plan.split > 1][kind]
    if plan.resident and kind == "16":
        accumulator *= 2
    elif plan.resident and kind == "ieee":
        return False
    units = 4 if kind == "ieee" else 8
    if plan.split > 1:
        # The parts are summed in registers.
        units = 8 // plan.num_warps // (2 if kind == "ieee" else 1)
    return (
        plan.split * plan.block_n * columns <= accumulator * threads
        and plan.block_n * plan.block_h <= units * threads
    )
