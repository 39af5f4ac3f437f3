"""What a round of an exchange costs, in a cluster and through L2: for csrc/cuda/plan/estimate.h.

A case is one way of exchanging, with groups of so many blocks and slices of so many bytes, for one
group alone or for as many as the device holds. micro.cu checks what arrives in every round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from .libraries import LaunchError

if TYPE_CHECKING:
    from .machine import Machine

FILE = "micro.jsonl"

# As micro.cu numbers them, and whether they stay inside a cluster.
TRANSPORTS = {
    "st.async": True,
    "bulk copies": True,
    "words, 4 loads in flight": False,
    "words, 8 loads in flight": False,
    "counter": False,
}
PATTERNS = ("all-gather", "reduce-scatter")
THREADS = 256
ROUNDS, SHORT = 2000, 200
SAMPLES = 3


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Every exchange; slices of 512 bytes of one group alone first."""
    blocks = {
        True: machine.full_or_tiny((4, 8, 16), (4,)),
        False: machine.full_or_tiny((48, 64, 128), (3,)),
    }
    slices = machine.full_or_tiny((512, 1024, 256, 2048, 4096), (256,))
    for crowded, size, pattern in itertools.product((False, True), slices, PATTERNS):
        for transport, cluster in TRANSPORTS.items():
            for count in blocks[cluster]:
                if crowded and not cluster and 2 * count > machine.facts["processors"]:
                    continue  # one group is all that fits
                name = f"{pattern}, {transport}, {count} blocks, {size} bytes"
                name += ", all groups" * crowded
                yield name, partial(measure, machine, transport, pattern, count, size, crowded)


def measure(
    machine: Machine, transport: str, pattern: str, blocks: int, size: int, crowded: bool
) -> dict:
    """Nanoseconds of a round.

    Args:
        machine: where to run.
        transport: one of TRANSPORTS.
        pattern: one of PATTERNS.
        blocks: of a group.
        size: bytes that one block sends another in a round.
        crowded: with as many groups as the device can hold; otherwise one.

    Returns:
        The case, `groups` that ran, `resident` groups that the device can hold, and `ns` of a
        round; or `refused` with the device's reason.

    Raises:
        RuntimeError: what arrived was wrong, or a kernel failed.
    """
    library = machine.library("micro")
    kind = list(TRANSPORTS).index(transport), PATTERNS.index(pattern)
    record = {"transport": transport, "cluster": TRANSPORTS[transport], "pattern": pattern}
    record |= {"blocks": blocks, "bytes": size}
    facts = torch.zeros(2, dtype=torch.int64)
    try:
        library.run("micro_facts", *kind, blocks, size, facts)
        resident, memory_bytes = facts.tolist()
        if resident == 0:
            return record | {"refused": "the device cannot hold one group"}
        groups = machine.full_or_tiny(resident, 2) if crowded else 1
        record |= {"groups": groups, "resident": resident}

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=machine.device)

        memory, counters = zeros(max(4, groups * memory_bytes // 4)), zeros(groups)
        wrong = zeros(groups * blocks, THREADS)

        def run(rounds: int, checked: int) -> float:
            """Seconds of a launch."""
            memory.zero_(), counters.zero_(), wrong.fill_(1)
            sizes = groups, blocks, size, rounds, checked
            arguments = *kind, *sizes, memory, counters, wrong, None
            seconds = machine.seconds(lambda: library.run("micro_run", *arguments))
            if failed := int(wrong.sum()):
                raise RuntimeError(f"{failed} comparisons of what arrived failed")
            return seconds

        short, long = machine.full_or_tiny((SHORT, ROUNDS), (3, 6))
        run(short, -(-blocks * size // (16 * THREADS)))  # compares all that arrives
        times = [[run(rounds, 1) for rounds in (short, long)] for _ in range(SAMPLES)]
    except LaunchError as error:
        if not error.refused:
            raise
        return record | {"refused": str(error)}
    # The difference of two lengths holds no launch.
    first, second = (min(column) for column in zip(*times, strict=True))
    return record | {"ns": 1e9 * (second - first) / (long - short)}
