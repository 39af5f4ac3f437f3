"""One step of any pointwise cell, fused: everything but the two products of a step.

Computes new state and saved values from gates that are given, and the gradient of that.
Program (p, q) owns rows p, p + programs, ... of the batch, in the q-th block of BLOCK units.
On chip: everything between the loads and the stores, in float32.
No synchronisation.

Limitations: arithmetic is float32, storage float32, float16 or bfloat16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import CELLS
from ..ops.registry import absent
from .cells import FUNCTIONS
from .layout import layout_of
from .plan import span
from .states import add_states, load_states, store_states
from .tiles import load_planes, store_grads, store_saved, store_through

_BLOCK = 256
# The largest size of axis 0 of a grid: programs loop over the rows beyond it.
_PROGRAMS = 1 << 16


@triton.jit(do_not_specialize=["N", "spans"])
def forward_kernel(
    gates_x, gates_h, h, c, new_h, new_c, saved, N, spans, SPAN: tl.constexpr, CELL: tl.constexpr,
    FORWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Shapes: gates [N, G*H], h [N, H], c [N, (S-1)*H], saved [N, K*H] or None."""
    H = spans * SPAN
    CARRIES: tl.constexpr = CELL.carries
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        new_state, values = FORWARD(
            load_planes(gates_x, row, units, mask, H, CELL.gates),
            load_planes(gates_h, row, units, mask, H, CELL.gates),
            load_states(h, c, row, units, mask, H, CARRIES, CELL), (), (), 0,
        )  # fmt: skip
        store_states(new_h, new_c, new_state, row, units, mask, H, CELL)
        store_saved(saved, values, row, units, mask, H, CELL, 0)


@triton.jit(do_not_specialize=["N", "spans"])
def backward_kernel(
    grad_new_h, grad_new_c, h, c, new_h, new_c, saved, grad_gates_x, grad_gates_h, grad_h, grad_c,
    N, spans, SPAN: tl.constexpr, CELL: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_gates_h is written whole where it is not None: only the separate gates are its own."""
    H = spans * SPAN
    STATES: tl.constexpr = CELL.states
    READS_NEW: tl.constexpr = CELL.reads_new_state
    READS: tl.constexpr = CELL.reads_state
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        zeros = (tl.zeros((BLOCK,), tl.float32),) * STATES
        grads = add_states(zeros, grad_new_h, grad_new_c, row, units, mask, H, CELL)
        grad_x, beside, grad_state = BACKWARD(
            load_planes(saved, row, units, mask, H, CELL.saved),
            load_states(h, c, row, units, mask, H, READS, CELL),
            load_states(new_h, new_c, row, units, mask, H, READS_NEW, CELL), (), grads, 0,
        )  # fmt: skip
        store_grads(grad_gates_x, None, grad_x, beside, row, units, mask, H, CELL, 0, None)
        if grad_gates_h is not None:
            store_through(grad_gates_h, grad_x, beside, row, units, mask, None, H, CELL, 0)
        store_states(grad_h, grad_c, grad_state, row, units, mask, H, CELL)


def aligned(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous tensors aligned to 16 bytes: Triton compiles slower kernels for others."""
    found = [x if x is None else x.contiguous() for x in tensors]
    return [x if x is None or x.data_ptr() % 16 == 0 else x.clone() for x in found]


def launch_rows(kernel, rows: int, h: Tensor, arguments: tuple, sizes: tuple = (), **constants):
    """Launch a kernel whose programs loop over rows and take one block of units each.

    Args:
        kernel: takes `arguments`, the spans of H, `sizes` and the constants SPAN and BLOCK.
        rows: how many rows there are.
        h: a state [N, H], for H, the dtype and the device.
        arguments: before the spans.
        sizes: behind them.
        constants: further constexpr arguments.
    """
    hidden_size = h.shape[1]
    units = span(hidden_size, h.element_size())
    grid = (min(rows, _PROGRAMS), triton.cdiv(hidden_size, _BLOCK))
    with torch.cuda.device_of(h):
        kernel[grid](
            *arguments,
            hidden_size // units,
            *sizes,
            **constants,
            SPAN=units,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )


def forward(
    cell: str, gates_x: Tensor, gates_h: Tensor, h: Tensor, c: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `<cell>_cell`: gates [N, G*H], state [N, H] and [N, (S-1)*H] -> new_h, new_c, saved."""
    layout = layout_of(CELLS[cell])
    new_h = h.new_empty(h.shape)
    new_c = absent(h) if c is None else h.new_empty(c.shape)
    saved = h.new_empty(h.shape[0], layout.saved * h.shape[1]) if save and layout.saved else None
    tensors = [*aligned(gates_x, gates_h, h, c), new_h, new_c, saved]
    if h.numel() > 0:
        constants = {"CELL": layout, "FORWARD": FUNCTIONS[cell].forward}
        launch_rows(forward_kernel, h.shape[0], h, (*tensors, h.shape[0]), **constants)
    return new_h, new_c, absent(h) if saved is None else saved


def backward(
    cell: str, grad_new_h: Tensor | None, grad_new_c: Tensor | None, h: Tensor, c: Tensor | None,
    new_h: Tensor, new_c: Tensor, saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run `<cell>_cell_backward` -> grad_gates_x, grad_gates_h (if separate), grad_h, grad_c."""
    layout = layout_of(CELLS[cell])
    grad_gates_x = h.new_empty(h.shape[0], layout.gates * h.shape[1])
    grad_gates_h = torch.empty_like(grad_gates_x) if layout.columns else None
    grad_h = h.new_empty(h.shape)
    grad_c = absent(h) if c is None else h.new_empty(c.shape)
    given = aligned(grad_new_h, None if c is None else grad_new_c, h, c, new_h, new_c, saved)
    results = (grad_gates_x, grad_gates_h, grad_h, grad_c)
    if h.numel() > 0:
        constants = {"CELL": layout, "BACKWARD": FUNCTIONS[cell].backward}
        launch_rows(backward_kernel, h.shape[0], h, (*given, *results, h.shape[0]), **constants)
    return grad_gates_x, absent(h) if grad_gates_h is None else grad_gates_h, grad_h, grad_c
