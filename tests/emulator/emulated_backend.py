"""The backend `persistent` on CPU tensors: the emulated ops stand in for those of a GPU.

All else (dispatcher, joined launches, autograd, torch.compile) is what runs on a GPU.
"""

import contextlib
import ctypes
import dataclasses

import torch
from emulated_ops import library, ops

from seqkernels import backend, dispatch
from seqkernels.cells import CELLS

OPS = ("sequence_persistent", "sequence_persistent_backward", "directions_persistent")
OPS += ("directions_persistent_backward", "layers_persistent", "layers_persistent_backward")
MATHS = ("float16", "bfloat16", "tf32", "float32")  # in the order of plan_types.h
# The device that calls are planned for, unless `ops` names another.
DEVICE = {"max_cluster": 4, "max_units": 16}


@torch.compiler.assume_constant_result
def planned(cell, dtype, *rest):
    """What `_C.persistent_refusal` answers on a GPU, of the emulated device."""
    refusal = library().functions.emulated_refusal
    refusal.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_bool]
    refusal.argtypes += [ctypes.c_int] * 2 + [ctypes.c_bool]
    refusal.restype = ctypes.c_char_p
    return refusal(list(CELLS).index(cell), MATHS.index(dtype), *rest).decode() or None


def can_run(call):
    if call.transformed or call.dtype == torch.float64:
        return "not emulated"
    return planned(*backend.question(call))


@contextlib.contextmanager
def persistent_on_the_cpu():
    """Dispatch CPU tensors to the emulated kernels, in strict float32; yields the ops called."""
    emulated, called = ops(**DEVICE), []
    library = torch.library.Library("seqkernels", "IMPL")

    def stand_in(name):
        function = getattr(emulated, name).default

        def call(*arguments):
            called.append(name)
            return function(*arguments)

        library.impl(name, call, "CPU")

    for cell in CELLS:
        for op in OPS:
            stand_in(f"{cell}_{op}")
    before, rnn = dispatch.BACKENDS, torch.backends.cudnn.rnn
    precision, rnn.fp32_precision = rnn.fp32_precision, "ieee"
    kept = dispatch._BY_NAME["persistent"]
    persistent = dataclasses.replace(kept, devices=("cpu",), can_run=can_run)
    dispatch.BACKENDS = (persistent, *(b for b in before if b.name != "persistent"))
    dispatch._BY_NAME["persistent"] = persistent
    try:
        yield called
    finally:
        dispatch.BACKENDS, dispatch._BY_NAME["persistent"] = before, kept
        rnn.fp32_precision = precision
        library._destroy()
