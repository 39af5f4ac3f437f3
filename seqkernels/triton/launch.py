"""Tensors to kernel launches: allocation, layout, and the plan that a shape gets.

Arguments and results are those of the ops (csrc/ops.cpp). Nothing here waits for the device, unless
`SEQKERNELS_TRITON_TUNE=1` asks for plans to be measured (tune.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..cells import CELLS
from ..ops.packed import batch_sizes_on, row_lengths, step_offsets
from ..ops.registry import absent
from . import cooperative, sliced, stepwise
from .cells import FUNCTIONS
from .estimate import device_of
from .exchange import WAIT_OPTIONS
from .layout import Layout, layout_of
from .plan import Plan, candidates, precision
from .pointwise import aligned
from .tune import choose

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def row_layout(
    lengths: Tensor | None, batch_sizes: Tensor | None, batch: int, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(lengths [N], offsets [T]) on the device of `like`, the sequence: rows in time for kernels.

    offsets is the first packed row of every step; None for the padded layout.
    """
    if batch_sizes is None:
        return aligned(lengths)[0], None
    # Two tensors, each with memory of its own: Triton compiles anew for a pointer that is not
    # aligned to 16 bytes.
    sizes = batch_sizes_on(batch_sizes, batch, like.shape[0], like.device)
    return row_lengths(sizes, batch), step_offsets(sizes)


def forward(
    cell: str,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: bool,
    plan: Plan | None = None,
) -> Results:
    """Run `<cell>_sequence`; `plan` overrides the chosen one.

    Returns:
        output, h_n, c_n, c_sequence, saved as in csrc/ops.cpp.
    """
    layout = layout_of(CELLS[cell])
    (batch, hidden_size), lead = h_0.shape, gates_x.shape[:-1]
    steps = lead[0] if batch_sizes is None else batch_sizes.shape[0]
    # Rows past their end are not written.
    new = gates_x.new_empty if lengths is None else gates_x.new_zeros
    output = new(*lead, hidden_size)
    c_sequence = new(*lead, layout.others * hidden_size) if layout.others and save else None
    saved = new(*lead, layout.saved * hidden_size) if save and layout.saved else None
    # A row of length 0 ends as it began.
    h_n = h_0.clone(memory_format=torch.contiguous_format)
    c_n = c_0.clone(memory_format=torch.contiguous_format) if layout.others else None
    if output.numel() > 0:
        inputs = aligned(gates_x, weight_hh, bias_hh, h_0, c_0 if layout.others else None)
        rows, flags = row_layout(lengths, batch_sizes, batch, gates_x), _bytes(reset)
        results = (output, h_n, c_n, c_sequence, saved)

        def run(chosen: Plan) -> None:
            if chosen.schedule == "stepwise":
                order = stepwise.Steps(steps, batch, batch_sizes, reverse)
                ends = None if batch_sizes is not None else rows[0]
                stepwise.forward(cell, *inputs, ends, flags, *results, order)
                return
            scratch = [_scratch(chosen, layout, h_0)]
            between = len(layout.stages) - 1
            if chosen.schedule == "sliced":
                scratch.append(_between(h_0, layout.kept, torch.float32) if between else None)
            scratch.append(_between(h_0, between, h_0.dtype) if between else None)
            options, sizes = _options(chosen, cell, "forward", output, steps, batch, reverse)
            kernels = cooperative if chosen.schedule == "cooperative" else sliced
            kernels.forward_kernel[chosen.grid(batch, hidden_size)](
                *inputs, *rows, flags, *scratch, *results, *sizes, **options
            )

        _launch(run, plan, cell, "forward", batch, hidden_size, output)
    return output, h_n, *(absent(h_0) if x is None else x for x in (c_n, c_sequence, saved))


def backward(
    cell: str,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_c_sequence: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    h_0: Tensor,
    c_0: Tensor | None,
    output: Tensor,
    c_sequence: Tensor,
    saved: Tensor,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `<cell>_sequence_backward`; `plan` overrides the chosen one.

    Returns:
        grad_gates_x, grad_gates_h, grad_h_0, grad_c_0 as in csrc/ops.cpp.
    """
    layout = layout_of(CELLS[cell])
    (batch, hidden_size), lead = h_0.shape, output.shape[:-1]
    steps = lead[0] if batch_sizes is None else batch_sizes.shape[0]
    new = output.new_empty if lengths is None else output.new_zeros
    grad_gates_x = new(*lead, layout.gates * hidden_size)
    grad_gates_h = new(*lead, layout.columns * hidden_size) if layout.columns else None
    # A row of length 0 passes its gradients on.
    grad_h_0 = _copy_or_zeros(grad_h_n, h_0)
    grad_c_0 = _copy_or_zeros(grad_c_n, c_0) if layout.others else None
    if output.numel() > 0:
        if not layout.others:
            grad_c_n = grad_c_sequence = c_0 = c_sequence = None
        arguments = aligned(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh,
                            bias_hh if layout.parameters else None, h_0, c_0, output, c_sequence,
                            saved if layout.saved else None)  # fmt: skip
        rows, flags = row_layout(lengths, batch_sizes, batch, output), _bytes(reset)
        results = (grad_gates_x, grad_gates_h, grad_h_0, grad_c_0)

        def run(chosen: Plan) -> None:
            if chosen.schedule == "stepwise":
                order = stepwise.Steps(steps, batch, batch_sizes, reverse)
                ends = None if batch_sizes is not None else rows[0]
                stepwise.backward(cell, *arguments, ends, flags, *results, order)
                return
            options, sizes = _options(chosen, cell, "backward", output, steps, batch, reverse)
            scratch = _scratch(chosen, layout, h_0)
            kernels = cooperative if chosen.schedule == "cooperative" else sliced
            kernels.backward_kernel[chosen.grid(batch, hidden_size)](
                *arguments, *rows, flags, scratch, *results, *sizes, **options
            )

        _launch(run, plan, cell, "backward", batch, hidden_size, output)
    grad_gates_h, grad_c_0 = (absent(h_0) if x is None else x for x in (grad_gates_h, grad_c_0))
    return grad_gates_x, grad_gates_h, grad_h_0, grad_c_0


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else aligned(flags)[0].view(torch.uint8)


def _copy_or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return grad.clone(memory_format=torch.contiguous_format)


def _between(h_0: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Room for `count` values of each unit."""
    return h_0.new_empty(h_0.shape[0], count * h_0.shape[1], dtype=dtype)


def _scratch(plan: Plan, layout: Layout, h_0: Tensor) -> Tensor | None:
    """Zeroed counters of the cooperative kernels; of the others the states carried in float32."""
    if plan.schedule == "cooperative":
        groups = -(-h_0.shape[0] // plan.block_n)
        return torch.zeros(groups, dtype=torch.int32, device=h_0.device)
    return _between(h_0, layout.carried, torch.float32) if layout.carried else None


def _options(
    plan: Plan, cell: str, direction: str, like: Tensor, steps: int, batch: int, reverse: bool
) -> tuple[dict, tuple[int, ...]]:
    """Constexpr arguments and launch options, and the sizes: T, N, spans of H, reverse."""
    spec, hidden_size = CELLS[cell], like.shape[-1]
    options = plan.constants(spec, hidden_size, direction, like.element_size())
    options |= {"PRECISION": precision(like.dtype), "CELL": layout_of(spec)}
    options[direction.upper()] = getattr(FUNCTIONS[cell], direction)
    if plan.schedule == "cooperative":
        options |= WAIT_OPTIONS
    return options, (steps, batch, hidden_size // options["SPAN"], int(reverse))


def _launch(
    run: Callable[[Plan], None], plan: Plan | None, cell: str, direction: str, batch: int,
    hidden_size: int, like: Tensor,
) -> None:  # fmt: skip
    """Run with the given plan, or the chosen one.

    Raises:
        RuntimeError: the given plan cannot run; the message says why.
    """
    device = device_of(like.device)
    with torch.cuda.device_of(like):
        if plan is None:
            # Plans are made for powers of two: a new batch size seldom compiles a new kernel.
            bucket = max(16, 1 << (batch - 1).bit_length())
            mode = precision(like.dtype)
            shape = (cell, direction, like.element_size(), mode, bucket, hidden_size)
            key = (cell, direction, str(like.dtype), mode, bucket, hidden_size)
            run(choose(candidates(*shape, device), key, run, like.device))
            return
        reason = plan.refusal(
            device, CELLS[cell], batch, hidden_size, direction, like.element_size()
        )
        if reason is not None:
            raise RuntimeError(f"this plan cannot run {cell} {direction}: {reason}")
        run(plan)
