"""Where the stages of the GPU campaign run: a CUDA device, its ops and its launch plans.

tests/emulator/rehearsal.py has the same for the CPU emulator.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

from seqkernels import _extension
from seqkernels.ops import get

# What a plan may use at most, by the names of `_C.limit_plans`; 0 stands for what the device has.
NO_LIMITS = {"max_cluster": 16, "max_units": 256, "shared_per_block": 0}


class Machine:
    """The current CUDA device.

    Attributes:
        device: of the tensors.
        rehearsal: whether the CUDA kernels run on the emulator, on tensors of the CPU.
        facts: what plans are made for, as `_C.device_facts` gives it.
    """

    rehearsal = False

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.facts: dict = _extension.C.device_facts()
        self._limits = NO_LIMITS

    def full_or_tiny(self, full, tiny):
        """The first on a GPU, the second in the rehearsal."""
        return tiny if self.rehearsal else full

    def op(self, name: str) -> Callable:
        """The op of a name such as "lstm_sequence_persistent"."""
        return get(name)

    @contextlib.contextmanager
    def limits(self, **limits: int) -> Iterator[None]:
        """Plan as for a smaller device inside the block, so that small sizes reach every exchange.

        Args:
            limits: of `max_cluster` (16), the blocks of a cluster; `max_units` (256), the hidden
                units of a block; `shared_per_block` (0, what the device has), its bytes of shared
                memory.
        """
        before, self._limits = self._limits, {**NO_LIMITS, **limits}
        self._limit_plans(**self._limits)
        try:
            yield
        finally:
            self._limits = before
            self._limit_plans(**before)

    def _limit_plans(self, **limits: int) -> None:
        _extension.C.limit_plans(**limits)

    def plan(
        self, cell: str, math: str, backward: bool, batch: int, hidden: int, **parts: int
    ) -> dict:
        """How the persistent kernels cut up a shape here, under the limits at hand.

        Args:
            cell: a key of `CELLS`.
            math: "float16", "bfloat16", "tf32" or "float32".
            backward: plan the backward.
            batch: N.
            hidden: H.
            parts: `directions` or `layers` of a joined launch.

        Returns:
            What `_C.plan` says; "refusal" is empty where there is a plan.
        """
        shared = self._limits["shared_per_block"] or self.facts["shared_per_block"]
        device = {
            "processors": self.facts["processors"],
            "shared_per_block": min(shared, self.facts["shared_per_block"]),
            "max_cluster": min(self._limits["max_cluster"], self.facts["max_cluster"]),
            "max_units": min(self._limits["max_units"], self.facts["max_units"]),
        }
        return _extension.C.plan(cell, math, backward, batch, hidden, **device, **parts)

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds that the device takes for one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def library(self, name: str):
        """The launchers of bench/gpu/*.cu by the name of their library; see libraries.py."""
        from .libraries import load

        return load(name, self.rehearsal)

    def synchronize(self) -> None:
        """Wait for the device; raises RuntimeError where a kernel has failed."""
        torch.cuda.synchronize()

    def failure(self) -> dict | None:
        """Why the device can no longer be used by this process; None where it can.

        Returns:
            {"spin": where loops gave up waiting, a record for each block}.
        """
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return {"spin": _extension.C.spin_report()}
        return None
