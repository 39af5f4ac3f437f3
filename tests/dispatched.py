"""What a piece of code dispatches: its ops, and whether one of them crosses from the host."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from seqkernels.ops import packed


class Dispatched(TorchDispatchMode):
    """Notes every op, and refuses one that reads a tensor of the host for another device.

    With the device "meta" in a GPU's place, it shows without a GPU what a CUDA graph could not
    capture. The project's own ops may read `batch_sizes`: they get the numbers there otherwise.

    Attributes:
        names: the ops in order.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        if func is torch.ops.seqkernels.batch_sizes_on.default:
            with self:  # in Python: its own ops, too
                return packed._batch_sizes_on(*args)
        results = func(*args, **(kwargs or {}))
        read = {x.device.type for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = {x.device.type for x in tree_iter(results) if isinstance(x, torch.Tensor)}
        if func.namespace == "aten" and "cpu" in read and read | made != {"cpu"}:
            raise AssertionError(f"{func} takes a tensor of the host to another device")
        return results
