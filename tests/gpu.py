"""The one reason for which a test may be skipped: there is no GPU."""

import os

import pytest
import torch


def require_cuda(reason: str = "", devices: int = 1) -> torch.device:
    """Return the CUDA device, the last of `devices`; skip without one.

    Under `--require-cuda` a missing first GPU fails; a missing second one is still a skip.

    Args:
        reason: what the test needs the GPU for, printed with the skip.
        devices: how many GPUs the test needs.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found >= devices:
        return torch.device("cuda", devices - 1) if devices > 1 else torch.device("cuda")
    message = f"{found or 'no'} GPU{': ' + reason if reason else ''}"
    if os.environ.get("SEQKERNELS_REQUIRE_CUDA") == "1" and found == 0:
        pytest.fail(message)
    pytest.skip(message)
