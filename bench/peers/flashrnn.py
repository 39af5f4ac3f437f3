"""FlashRNN 1.0.8 (PyPI wheel): LSTM fused over time, GRU with a kernel a step; no input projection.

It compiles a kernel for every (cell, N, H, dtype) on its first call, after a search for a tiling
that runs on the CPU: minutes, shown as the first call. CONSTRINT_CACHE_DIR keeps that search.
"""

import importlib
import importlib.util
import sys
import time

import torch
from torch.nn import functional as F

from ..contestants import Prepared, Refused
from ..workload import Workload
from . import Adapter, no_gpu

NAME = "FlashRNN"
# Its gpu_info extension does not compile with CUDA 13, and it sleeps at random before each build.
LABEL = "patched"

_BACKENDS = {"lstm": "cuda_fused", "gru": "cuda", "rnn_tanh": "cuda_fused"}
_FUNCTIONS = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "elman"}


def unavailable() -> str | None:
    """The reason it cannot run here, or None."""
    if importlib.util.find_spec("flashrnn") is None:
        return "flashrnn is not installed"
    return no_gpu()


def build(work: Workload, mode: str) -> Prepared:
    """The layer of a workload.

    Raises:
        Refused: it has no such cell or dtype.
    """
    case = work.case
    if case.cell not in _FUNCTIONS:
        raise Refused(f"it has no {case.cell}")
    if case.dtype == "float32":
        raise Refused("its float32 products are TF32")
    return _Layer(work, _patched().flashrnn, _BACKENDS[case.cell]).prepared(work, mode)


class _Layer(Adapter):
    def __init__(self, work: Workload, flashrnn, backend: str):
        super().__init__(work)
        self.flashrnn, self.backend = flashrnn, backend
        self.function = _FUNCTIONS[work.case.cell]
        self.dtype_name = str(work.dtype).removeprefix("torch.")

    def forward(self, work: Workload):
        """Project the input, then run the recurrence over [N, T, G, 1, H]."""
        case = work.case
        gates_x = F.linear(work.x, self.weight_ih_l0, self.bias_ih_l0)
        shape = (work.length, case.batch, case.gates, 1, case.hidden_size)
        recurrent = self.weight_hh_l0.view(case.gates, 1, case.hidden_size, case.hidden_size)
        bias = self.bias_hh_l0.view(case.gates, 1, case.hidden_size)
        if case.cell == "gru":
            # Its recurrent gates are n, r, z, and its biases those and one of the input's n, which
            # is in gates_x already.
            recurrent, bias = recurrent.roll(1, 0), bias.roll(1, 0)
            bias = torch.cat([bias, torch.zeros_like(bias[:1])])
        states, _ = self.flashrnn(
            gates_x.view(shape).transpose(0, 1),
            recurrent,
            bias,
            function=self.function,
            backend=self.backend,
            dtype=self.dtype_name,
        )
        # [states, N, T, heads, H]; h is the first state, c the second.
        sequences = states.squeeze(-2).transpose(1, 2)
        final = sequences[:, -1:]
        return sequences[0], (final[0], final[1]) if case.cell == "lstm" else final[0]


def _patched():
    """The module, with what keeps it from running replaced.

    Its device query becomes torch's, and its random wait before a build is left out.
    """
    # The function of the same name hides the module.
    importlib.import_module("flashrnn.flashrnn.flashrnn")
    module = sys.modules["flashrnn.flashrnn.flashrnn"]
    if torch.cuda.is_available():
        module.get_gpu_info = _gpu_info
        sys.modules["flashrnn.flashrnn.cuda_init"].time = _NoWait()
    return module


class _NoWait:
    """The `time` module without sleep, for one importer."""

    def __getattr__(self, name: str):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Return at once."""


def _gpu_info(device_id: int) -> dict:
    properties = torch.cuda.get_device_properties(device_id)
    return {
        "maxThreadsPerBlock": 1024,
        "regsPerMultiprocessor": properties.regs_per_multiprocessor,
        "multiProcessorCount": properties.multi_processor_count,
        "sharedMemPerBlockOptin": properties.shared_memory_per_block_optin,
    }
