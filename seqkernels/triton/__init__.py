"""Triton kernels: the sequence and cell ops on CUDA, with no compiler on the user's machine.

Importing this defines the ops and nothing more: Triton itself is imported by the first call.
"""

from importlib.util import find_spec

import torch

from . import ops  # noqa: F401  (defines the ops)
from .estimate import CLEARLY, COMPILED_PAIR, device_of
from .plan import losing_batch, precision

__all__ = ["can_run", "stands_behind"]

# Looked up once: torch.compile traces `can_run`, and cannot trace a search for modules.
_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def can_run(call) -> str | None:
    """Why the Triton kernels cannot run a call, or None if they can.

    Args:
        call: a `dispatch.Call`; its device and dtype decide.
    """
    if call.dtype not in _DTYPES:
        return f"the Triton kernels compute in float32; {call.dtype} is not among their dtypes"
    if call.device.type != "cuda":
        return f"the Triton kernels run on cuda, the input is on {call.device.type}"
    if not _INSTALLED:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the Triton kernels were checked for NVIDIA GPUs alone"
    major, minor = torch.cuda.get_device_capability(call.device)
    if major < 8:
        return f"the Triton kernels need compute capability 8.0, the device has {major}.{minor}"
    return None


def stands_behind(call) -> str | None:
    """Why a stepwise schedule of compiled kernels should be tried before these, or None.

    Args:
        call: a `dispatch.Call` that `can_run` accepts.

    The threshold is an estimate that awaits measurement (estimate.py). An exported program is for
    every batch, so its symbolic batch is not compared.
    """
    if isinstance(call.batch, torch.SymInt):
        return None
    limit = _losing_batch(call.cell, call.dtype, call.hidden_size, call.device, call.training)
    if limit is None or call.batch < limit:
        return None
    return f"a step is estimated to take over {CLEARLY} times that of a product and a cell kernel"


# Without the batch among its arguments: it may be symbolic, and is compared by the compiled code.
@torch.compiler.assume_constant_result
def _losing_batch(cell, dtype, hidden_size, device, training):
    facts = (hidden_size, device_of(device), training, COMPILED_PAIR)
    return losing_batch(cell, dtype.itemsize, precision(dtype), *facts)
