"""The one reason for which a test may be skipped: there is no GPU."""

import os

import pytest
import torch


def require_cuda(reason: str = "") -> torch.device:
    """Return the CUDA device; skip without one, or fail under `--require-cuda`.

    Args:
        reason: what the test needs the GPU for, printed with the skip.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    message = f"no GPU{': ' + reason if reason else ''}"
    if os.environ.get("SEQKERNELS_REQUIRE_CUDA") == "1":
        pytest.fail(message)
    pytest.skip(message)
