"""Triton kernels: the sequence and cell ops on CUDA, with no compiler on the user's machine.

Importing this defines the ops and nothing more: Triton itself is imported by the first call.
"""

from importlib.util import find_spec

import torch

from . import ops  # noqa: F401  (defines the ops)

__all__ = ["can_run"]

# Looked up once: the compiler of torch traces `can_run`, and cannot trace a search for modules.
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
