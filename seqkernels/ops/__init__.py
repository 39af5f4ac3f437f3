"""Fake tensors and autograd for every op of `torch.ops.seqkernels`.

Six families, for every cell; `rows_product`, the gradient of a weight on the CPU (weights.py); and
`batch_sizes_on`, which brings the batch sizes of packed input to a device (packed.py):

* `<cell>_cell`: one pointwise step (cell.py).
* `<cell>_sequence`, `_sequence_persistent`, `_sequence_triton`: the recurrence of one layer in one
  direction (sequence.py). csrc/ops.cpp describes schemas and shapes.
* `<cell>_step`: one step with its products, for the CPU (step.py).
* `<cell>_layer`: input projection and recurrence together (layer.py). It exists for its backward:
  the large products for the input and the weights stand there once for every backend, and the
  projected input need not be kept.
* `<cell>_lookup`: the recurrence over symbols, whose gates stand in a table, for the CPU
  (embedded.py).
* `<cell>_joined`, over `<cell>_directions_persistent` and `<cell>_layers_persistent`: both
  directions of a layer, or several layers, in one launch (joined.py).

First derivatives use the backend's backward op. Where a derivative of the derivative is asked for
(`create_graph=True`) the gradients are taken through the reference recurrence instead, which is
differentiable to any order. What each op counts for in floating-point operations stands in
flops.py.
"""

from .. import _extension
from ..cells import CELLS, add_compiled
from .cell import register_cell
from .embedded import register_lookup
from .flops import register_when_imported
from .joined import register_joined, register_joined_layer
from .layer import register_layer
from .registry import defined, get
from .sequence import register_sequence
from .step import register_step
from .weights import register_rows_product

__all__ = ["defined", "get", "register_cell", "register_sequence"]

if _extension.C is not None:
    register_rows_product()
    add_compiled(_extension.C.cells())
for _spec in CELLS.values():
    if _extension.C is not None:
        register_sequence(_spec, "")
        register_sequence(_spec, "_persistent")
        register_joined(_spec, "_persistent")
        register_lookup(_spec)
        if _spec.pointwise:
            register_cell(_spec, "")
            register_step(_spec)
    register_layer(_spec)
    register_joined_layer(_spec)
register_when_imported()
