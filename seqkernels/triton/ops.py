"""The Triton ops: `<cell>_sequence_triton`, `<cell>_cell_triton` and their backwards, on CUDA.

Schemas are those of csrc/ops.cpp. The kernels, and with them Triton, are imported by the first
call.
"""

from functools import partial
from importlib import import_module

import torch

from ..cells import CELLS, CellSpec
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


def _run(module: str, direction: str, cell: str, *arguments):
    """Call a function of a module that is imported only now."""
    return getattr(import_module(module, __package__), direction)(cell, *arguments)


def _define(spec: CellSpec, kind: str, module: str, forward: str, backward: str) -> None:
    """Define `<cell>_<kind>_triton` and its backward with these schemas."""
    name = f"{spec.name}_{kind}_triton"
    schemas = {"forward": name + forward, "backward": f"{name}_backward{backward}"}
    for direction, schema in schemas.items():
        _LIBRARY.define(schema)
        run = partial(_run, module, direction, spec.name)
        _LIBRARY.impl(schema.split("(")[0], run, "CUDA")


for _spec in CELLS.values():
    _define(_spec, "sequence", ".launch", _SEQUENCE, _SEQUENCE_BACKWARD)
    register_sequence(_spec, "_triton")
    if _spec.pointwise:
        _define(_spec, "cell", ".pointwise", _CELL, _CELL_BACKWARD)
        register_cell(_spec, "_triton")
