"""Where the time of a step goes: the persistent LSTM kernel, and the same without one of its parts.

N = 16 in float16, with H = 768, which exchanges through L2, and H = 512, in a cluster. What a part
costs is the time of the whole kernel less the time without it: parts that overlap cost less than
they take. Then the clock of one warp at six points of 64 steps in the middle (where.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .machine import Machine

FILE = "where.jsonl"

PARTS = ("product", "pointwise", "memory", "exchange")
# What a clock is read after: the product, the block barrier, the pointwise part, the publication,
# stores and the loads of the next step, and the collection of what others have published.
POINTS = ("product", "barrier", "pointwise", "publish", "memory", "collect")
STEPS, STAMPED, SAMPLES = 512, 64, 7
# Arguments of the launchers, and what they write.
FORWARD = ("gates_x", "weight_hh", "bias_hh", "h_0", "c_0", "output", "h_n", "c_n")
FORWARD += ("c_sequence", "saved")
BACKWARD = ("grad_output", "grad_h_n", "grad_c_n", "weight_hh", "h_0", "c_0", "output")
BACKWARD += ("c_sequence", "saved", "grad_gates_x", "grad_h_0", "grad_c_0")


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The whole kernel, the kernel without each part, and the clocks; forward first."""
    for backward in (False, True):
        for hidden, cluster in ((768, 1), (512, 16)):
            name = f"{'backward' if backward else 'forward'}, H={hidden}"
            kernel = cache(partial(Kernel, machine, backward, hidden, cluster))
            yield f"{name}, whole", lambda kernel=kernel: whole(kernel())
            for part in PARTS:
                yield f"{name}, without {part}", lambda k=kernel, part=part: without(k(), part)
            yield f"{name}, clocks", lambda kernel=kernel: clocks(kernel())


class Kernel:
    """One direction at one size: its tensors, and launches of its variants.

    Args:
        machine: where it runs.
        backward: the direction.
        hidden: H; in a rehearsal a sixteenth of it, in blocks of 16 units at most.
        cluster: most blocks of a cluster; 1 makes groups exchange through L2.
    """

    def __init__(self, machine: Machine, backward: bool, hidden: int, cluster: int):
        self.machine, self.backward = machine, backward
        choose = machine.full_or_tiny
        self.limits = {"max_cluster": cluster, "max_units": choose(256, 16)}
        self.steps, self.batch, self.hidden = choose((STEPS, 16, hidden), (6, 3, hidden // 16))
        self.request = self._request(backward)
        plan = torch.zeros(7, dtype=torch.int64)
        machine.library("where_whole").run("where_plan", self.request, plan)
        exchange, blocks, slices, units, pieces, memory, self._stamps = plan.tolist()
        self.plan = {"exchange": ("none", "cluster", "L2")[exchange], "blocks": blocks}
        self.plan |= {"slices": slices, "units": units, "pieces": pieces}
        self.memory = torch.zeros(memory, dtype=torch.uint8, device=machine.device)
        self.tensors = self._tensors()
        if backward:
            self._call("whole", "where_forward", self._request(False), FORWARD)

    def _request(self, backward: bool) -> Tensor:
        facts, sizes = self.machine.facts, (self.steps, self.batch, self.hidden)
        limits = (min(facts[name], limit) for name, limit in self.limits.items())
        device = facts["processors"], facts["shared_per_block"], *limits, *facts["clusters"]
        return torch.tensor([backward, *sizes, *device], dtype=torch.int32)

    def _tensors(self) -> dict[str, Tensor]:
        device = self.machine.device
        generator = torch.Generator(device).manual_seed(0)
        state, gates = (self.batch, self.hidden), 4 * self.hidden
        shapes = dict.fromkeys(("h_0", "c_0", "grad_h_n", "grad_c_n"), state)
        shapes |= {"weight_hh": (gates, self.hidden), "bias_hh": (gates,)}
        shapes |= {"gates_x": (self.steps, self.batch, gates), "grad_output": (self.steps, *state)}
        options = {"dtype": torch.float16, "device": device}
        found = {n: torch.randn(*s, generator=generator, **options) for n, s in shapes.items()}
        found["weight_hh"] *= self.hidden**-0.5
        results = dict.fromkeys(("h_n", "c_n", "grad_h_0", "grad_c_0"), state)
        results |= dict.fromkeys(("output", "c_sequence"), shapes["grad_output"])
        results |= dict.fromkeys(("saved", "grad_gates_x"), shapes["gates_x"])
        return found | {name: torch.zeros(*shape, **options) for name, shape in results.items()}

    def _call(self, variant: str, function: str, request: Tensor, names: tuple[str, ...]) -> float:
        library = self.machine.library(f"where_{variant}")
        arguments = request, *(self.tensors[name] for name in names), self.memory, None
        self.memory.zero_()
        return self.machine.seconds(lambda: library.run(function, *arguments))

    def run(self, variant: str) -> float:
        """Launch a variant; returns its seconds."""
        function = "where_backward" if self.backward else "where_forward"
        return self._call(variant, function, self.request, BACKWARD if self.backward else FORWARD)

    def step_ns(self, *variants: str) -> list[float]:
        """Nanoseconds of a step of each variant, from launches in turns."""
        samples = self.machine.full_or_tiny(SAMPLES, 1)
        times = [[self.run(variant) for variant in variants] for _ in range(samples)]
        return [1e9 * median(column) / self.steps for column in zip(*times, strict=True)]

    def expected(self) -> dict[str, Tensor]:
        """What the op of the package computes from the same tensors under the same limits."""
        t, nothing = self.tensors, [None, None, None, False]  # no lengths, no resets
        with self.machine.limits(**self.limits):
            if self.backward:
                op = self.machine.op("lstm_sequence_persistent_backward")
                given = [*(t[name] for name in BACKWARD[:3]), None]
                given += [t[BACKWARD[3]], None, *(t[name] for name in BACKWARD[4:9])]
                grad_gates_x, _, grad_h_0, grad_c_0 = op(*given, *nothing)
                return {"grad_gates_x": grad_gates_x, "grad_h_0": grad_h_0, "grad_c_0": grad_c_0}
            op = self.machine.op("lstm_sequence_persistent")
            found = op(*(t[name] for name in FORWARD[:5]), *nothing, True)
            return dict(zip(("output", "h_n", "c_n", "c_sequence", "saved"), found, strict=True))

    def stamps(self) -> Tensor:
        """The clocks [steps, points] that the last launch has left."""
        found = self.memory[self._stamps :].view(torch.int64).view(self.steps + 1, len(POINTS))
        return found[: self.steps].cpu()


def whole(kernel: Kernel) -> dict:
    """Nanoseconds of a step, with its share of the launch.

    Raises:
        RuntimeError: the numbers are not those of the package's op, bit for bit.
    """
    (ns,) = kernel.step_ns("whole")
    for name, value in kernel.expected().items():
        if not torch.equal(value, kernel.tensors[name]):
            raise RuntimeError(f"{name} is not what the op computes")
    return {**kernel.plan, "ns": ns}


def without(kernel: Kernel, part: str) -> dict:
    """Nanoseconds of a step without a part, of the whole, and the difference.

    Args:
        kernel: what to run.
        part: one of PARTS.
    """
    complete, ns = kernel.step_ns("whole", f"without_{part}")
    return {**kernel.plan, "without": part, "whole_ns": complete, "ns": ns, "costs": complete - ns}


def clocks(kernel: Kernel) -> dict:
    """Clocks between the six points of a step: medians, and all of them.

    Raises:
        RuntimeError: the clock did not rise from point to point.
    """
    for _ in range(2):  # the first fills caches
        kernel.run("stamped")
    count = min(STAMPED, kernel.steps - 2)
    first = (kernel.steps - count) // 2
    # The product of a step begins where the step before has ended.
    passed = kernel.stamps()[first - 1 : first + count].flatten()[len(POINTS) - 1 :].diff()
    if passed.min() <= 0:
        raise RuntimeError("the clock did not rise from point to point")
    passed = passed.view(count, len(POINTS))
    return {
        **kernel.plan,
        "clocks": dict(zip(POINTS, passed.double().median(0).values.tolist(), strict=True)),
        "step_clocks": passed.sum(1).double().median().item(),
        "steps": passed.tolist(),
    }
