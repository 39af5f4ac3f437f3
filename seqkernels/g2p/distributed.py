"""Several processes started by torchrun that train one model."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

# Process groups that have ended. Whoever drops the last reference to one waits for its threads.
# Only the Python object does that without the interpreter's lock, which such a thread may need to
# end; the reducer of a DistributedDataParallel that outlives the group would hang on it.
_ended: list[distributed.ProcessGroup] = []
atexit.register(_ended.clear)


@dataclass(frozen=True)
class World:
    """This process among all: its number, how many there are, its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def total(self, values: list[float], device: torch.device) -> list[float]:
        """The sums of each value over all processes."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def agree(self, value: float, device: torch.device) -> float:
        """The first process's value, on all."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(tensor, 0)
        return tensor.item()


@contextmanager
def world(device_type: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield World(
            distributed.get_rank(),
            distributed.get_world_size(),
            int(os.environ.get("LOCAL_RANK", "0")),
        )
    finally:
        _ended.append(distributed.group.WORLD)
        distributed.destroy_process_group()
