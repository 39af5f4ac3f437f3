"""One step of any pointwise cell, fused: what stands around the two products of a step.

Computes new state and saved values from gates that are given, and the gradient of that.
Program (p, q) owns rows p, p + programs, ... of the batch, in the q-th block of BLOCK units.
On chip: everything between the loads and the stores, in float32.
Synchronises on nothing.

Limitations: arithmetic is float32, storage float32, float16 or bfloat16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import CELLS
from ..ops.registry import absent
from .cells import FUNCTIONS
from .plan import span
from .tiles import load_planes, store_planes

_BLOCK = 256
# The largest grid of axis 0 that is asked for: rows beyond it are taken in a loop.
_PROGRAMS = 1 << 16


@triton.jit(do_not_specialize=["N", "spans"])
def forward_kernel(
    gates_x, gates_h, h, c, new_h, new_c, saved, N, spans, SPAN: tl.constexpr,
    FORWARD: tl.constexpr, STATES: tl.constexpr, GATES: tl.constexpr, SAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Shapes: gates [N, G*H], state [N, H], saved [N, K*H] or None."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        old_h = tl.load(h + row * H + units, mask=mask, other=0.0).to(tl.float32)
        old_c = old_h
        if STATES == 2:
            old_c = tl.load(c + row * H + units, mask=mask, other=0.0).to(tl.float32)
        next_h, next_c, values = FORWARD(
            load_planes(gates_x + row * (GATES * H) + units, H, mask, GATES),
            load_planes(gates_h + row * (GATES * H) + units, H, mask, GATES),
            old_h,
            old_c,
        )
        tl.store(new_h + row * H + units, next_h, mask=mask)
        if STATES == 2:
            tl.store(new_c + row * H + units, next_c, mask=mask)
        if saved is not None:
            store_planes(saved + row * (SAVED * H) + units, H, mask, values, SAVED)


@triton.jit(do_not_specialize=["N", "spans"])
def backward_kernel(
    grad_new_h, grad_new_c, h, c, new_h, new_c, saved, grad_gates_x, grad_gates_h, grad_h, grad_c,
    N, spans, SPAN: tl.constexpr, BACKWARD: tl.constexpr, STATES: tl.constexpr, GATES: tl.constexpr,
    SAVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_gates_h is written whole where it is not None: only its last H columns are its own."""
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = units < H
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        place = row * H + units
        old_h = tl.load(h + place, mask=mask, other=0.0).to(tl.float32)
        next_h = tl.load(new_h + place, mask=mask, other=0.0).to(tl.float32)
        arriving_h = tl.zeros((BLOCK,), tl.float32)
        if grad_new_h is not None:
            arriving_h += tl.load(grad_new_h + place, mask=mask, other=0.0).to(tl.float32)
        arriving_c = tl.zeros((BLOCK,), tl.float32)
        if grad_new_c is not None:
            arriving_c += tl.load(grad_new_c + place, mask=mask, other=0.0).to(tl.float32)
        old_c = old_h
        next_c = next_h
        if STATES == 2:
            old_c = tl.load(c + place, mask=mask, other=0.0).to(tl.float32)
            next_c = tl.load(new_c + place, mask=mask, other=0.0).to(tl.float32)
        values = ()
        if SAVED > 0:
            values = load_planes(saved + row * (SAVED * H) + units, H, mask, SAVED)
        grads, grad_hn, passed_h, passed_c = BACKWARD(
            values, old_h, old_c, next_h, next_c, arriving_h, arriving_c
        )
        gates = row * (GATES * H) + units
        store_planes(grad_gates_x + gates, H, mask, grads, GATES)
        if grad_gates_h is not None:
            store_planes(grad_gates_h + gates, H, mask, grads, GATES - 1)
            tl.store(grad_gates_h + gates + (GATES - 1) * H, grad_hn, mask=mask)
        tl.store(grad_h + place, passed_h, mask=mask)
        if STATES == 2:
            tl.store(grad_c + place, passed_c, mask=mask)


def aligned(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous tensors that begin at 16 bytes: others would be kernels of their own, slower."""
    return [x if x is None else _aligned(x) for x in tensors]


def _aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def launch_rows(kernel, rows: int, h: Tensor, arguments: tuple, sizes: tuple = (), **constants):
    """Launch a kernel whose programs take rows in turn and units in blocks.

    Args:
        kernel: takes `arguments`, the spans of H, `sizes` and the constants SPAN and BLOCK.
        rows: how many rows there are to take.
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
    """Run `<cell>_cell`: gates [N, G*H], state [N, H] -> new_h, new_c, saved."""
    spec = CELLS[cell]
    new_h = h.new_empty(h.shape)
    new_c = h.new_empty(h.shape) if spec.states == 2 else absent(h)
    saved = h.new_empty(h.shape[0], spec.saved * h.shape[1]) if save and spec.saved else None
    tensors = [*aligned(gates_x, gates_h, h, c), new_h, new_c, saved]
    if h.numel() > 0:
        launch_rows(
            forward_kernel,
            h.shape[0],
            h,
            (*tensors, h.shape[0]),
            FORWARD=FUNCTIONS[cell].forward,
            STATES=spec.states,
            GATES=spec.gates,
            SAVED=spec.saved,
        )
    return new_h, new_c, absent(h) if saved is None else saved


def backward(
    cell: str,
    grad_new_h: Tensor | None,
    grad_new_c: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    new_h: Tensor,
    new_c: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `<cell>_cell_backward` -> grad_gates_x, grad_gates_h (gru), grad_h, grad_c."""
    spec = CELLS[cell]
    two = spec.states == 2
    grad_gates_x = h.new_empty(h.shape[0], spec.gates * h.shape[1])
    grad_gates_h = torch.empty_like(grad_gates_x) if spec.separate_columns else None
    grad_h = h.new_empty(h.shape)
    grad_c = h.new_empty(h.shape) if two else absent(h)
    tensors = [
        *aligned(grad_new_h, grad_new_c if two else None, h, c, new_h, new_c, saved),
        grad_gates_x,
        grad_gates_h,
        grad_h,
        grad_c,
    ]
    if h.numel() > 0:
        launch_rows(
            backward_kernel,
            h.shape[0],
            h,
            (*tensors, h.shape[0]),
            BACKWARD=FUNCTIONS[cell].backward,
            STATES=spec.states,
            GATES=spec.gates,
            SAVED=spec.saved,
        )
    return grad_gates_x, absent(h) if grad_gates_h is None else grad_gates_h, grad_h, grad_c
