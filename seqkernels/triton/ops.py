"""The Triton ops: `<cell>_sequence_triton`, `<cell>_cell_triton` and their backwards, on CUDA.

Schemas are those of csrc/ops.cpp. The kernels, and with them Triton, are imported by the first
call.
"""

from functools import partial

import torch

from ..cells import CELLS
from ..ops import register_cell, register_sequence

_SEQUENCE = (
    "(Tensor gates_x, Tensor weight_hh, Tensor? bias_hh, Tensor h_0, Tensor? c_0, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset, bool reverse, bool save) -> "
    "(Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
)
_SEQUENCE_BACKWARD = (
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c_sequence, "
    "Tensor weight_hh, Tensor? bias_hh, Tensor h_0, Tensor? c_0, Tensor output, Tensor c_sequence, "
    "Tensor saved, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse) -> "
    "(Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h_0, Tensor grad_c_0)"
)
_CELL = (
    "(Tensor gates_x, Tensor gates_h, Tensor h, Tensor? c, bool save) -> "
    "(Tensor new_h, Tensor new_c, Tensor saved)"
)
_CELL_BACKWARD = (
    "(Tensor? grad_new_h, Tensor? grad_new_c, Tensor h, Tensor? c, Tensor new_h, Tensor new_c, "
    "Tensor saved) -> (Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h, Tensor grad_c)"
)

# Kept alive: its registrations end with it. Without the compiled module it makes the namespace.
_LIBRARY = torch.library.Library("seqkernels", "FRAGMENT")


def _sequence(cell, *args):
    from . import launch

    return launch.forward(cell, *args)


def _sequence_backward(cell, *args):
    from . import launch

    return launch.backward(cell, *args)


def _cell(cell, *args):
    from . import pointwise

    return pointwise.forward(cell, *args)


def _cell_backward(cell, *args):
    from . import pointwise

    return pointwise.backward(cell, *args)


def _define(name: str, schema: str, function, cell: str) -> None:
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, partial(function, cell), "CUDA")


for _spec in CELLS.values():
    _define(f"{_spec.name}_sequence_triton", _SEQUENCE, _sequence, _spec.name)
    _define(
        f"{_spec.name}_sequence_triton_backward", _SEQUENCE_BACKWARD, _sequence_backward, _spec.name
    )
    register_sequence(_spec, "_triton")
    if _spec.pointwise:
        _define(f"{_spec.name}_cell_triton", _CELL, _cell, _spec.name)
        _define(f"{_spec.name}_cell_triton_backward", _CELL_BACKWARD, _cell_backward, _spec.name)
        register_cell(_spec, "_triton")
