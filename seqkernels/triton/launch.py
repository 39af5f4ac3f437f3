"""Tensors to kernel launches: allocation, layout, and the plan that a shape gets.

Arguments and results are those of the ops (csrc/ops.cpp). Nothing here waits for the device, unless
`SEQKERNELS_TRITON_TUNE=1` asks for plans to be measured (tune.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..cells import CELLS, CellSpec
from ..ops.packed import batch_sizes_on, row_lengths, step_offsets
from ..ops.registry import absent
from . import (
    cooperative,
    cooperative_reset_before,
    reset_before,
    sliced,
    stepwise,
    stepwise_reset_before,
)
from .cells import FUNCTIONS
from .estimate import device_of
from .exchange import WAIT_OPTIONS
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
    spec = CELLS[cell]
    two = spec.states == 2
    (batch, hidden_size), lead = h_0.shape, gates_x.shape[:-1]
    steps = lead[0] if batch_sizes is None else batch_sizes.shape[0]
    # Rows past their end are not written.
    new = gates_x.new_empty if lengths is None else gates_x.new_zeros
    output = new(*lead, hidden_size)
    c_sequence = new(*lead, hidden_size) if two and save else None
    saved = new(*lead, spec.saved * hidden_size) if save and spec.saved else None
    # A row of length 0 ends as it began.
    h_n = h_0.clone(memory_format=torch.contiguous_format)
    c_n = c_0.clone(memory_format=torch.contiguous_format) if two else None
    if output.numel() > 0:
        inputs = aligned(gates_x, weight_hh, bias_hh, h_0)
        state = aligned(c_0 if two else None)
        layout = row_layout(lengths, batch_sizes, batch, gates_x)
        flags = _bytes(reset)

        def run(chosen: Plan) -> None:
            if chosen.schedule == "stepwise":
                rows = stepwise.Steps(steps, batch, batch_sizes, reverse)
                ends = None if batch_sizes is not None else layout[0]
                if spec.pointwise:
                    results = (output, h_n, c_n, c_sequence, saved, rows)
                    stepwise.forward(cell, *inputs, *state, ends, flags, *results)
                else:
                    stepwise_reset_before.forward(*inputs, ends, flags, output, h_n, saved, rows)
                return
            options, sizes = _options(chosen, spec, "forward", output, steps, batch, reverse)
            kernels = _kernels(chosen, spec)
            if spec.pointwise:
                scratch = (_scratch(chosen, cell, h_0),)
                results = (output, h_n, c_n, c_sequence)
                arguments = (*inputs, *state, *layout, flags, *scratch, *results)
            else:
                # r * h in the storage dtype; of the sliced schedule also z in float32.
                scratch = [_scratch(chosen, cell, h_0), torch.empty_like(inputs[3])]
                if chosen.schedule == "sliced":
                    scratch.insert(1, torch.empty_like(scratch[0]))
                arguments = (*inputs, *layout, flags, *scratch, output, h_n)
            grid = chosen.grid(batch, hidden_size)
            kernels.forward_kernel[grid](*arguments, saved, *sizes, **options)

        _launch(run, plan, cell, "forward", batch, hidden_size, output)
    return output, h_n, *(absent(h_0) if x is None else x for x in (c_n, c_sequence, saved))


def backward(
    cell: str,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_c_sequence: Tensor | None,
    weight_hh: Tensor,
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
    spec = CELLS[cell]
    two = spec.states == 2
    (batch, hidden_size), lead = h_0.shape, output.shape[:-1]
    steps = lead[0] if batch_sizes is None else batch_sizes.shape[0]
    new = output.new_empty if lengths is None else output.new_zeros
    grad_gates_x = new(*lead, spec.gates * hidden_size)
    grad_gates_h = new(*lead, hidden_size) if spec.separate_columns else None
    # A row of length 0 passes its gradients on.
    grad_h_0 = _copy_or_zeros(grad_h_n, h_0)
    grad_c_0 = _copy_or_zeros(grad_c_n, h_0) if two else None
    if output.numel() > 0:
        layout = row_layout(lengths, batch_sizes, batch, output)
        grads = aligned(grad_output, grad_h_n)
        grads_c = aligned(grad_c_n, grad_c_sequence) if two else [None, None]
        inputs = aligned(weight_hh, h_0, c_0 if two else None, output)
        kept = aligned(c_sequence if two else None, saved if spec.saved else None)
        flags = _bytes(reset)
        results = [grad_gates_x, grad_gates_h, grad_h_0, grad_c_0]
        arguments = [*grads, *grads_c, *inputs, *kept]
        if not spec.pointwise:
            # Without what belongs to c, and without separate gradients.
            arguments, results = [*grads, inputs[0], inputs[1], inputs[3], kept[1]], results[::2]

        def run(chosen: Plan) -> None:
            if chosen.schedule == "stepwise":
                rows = stepwise.Steps(steps, batch, batch_sizes, reverse)
                ends = None if batch_sizes is not None else layout[0]
                if spec.pointwise:
                    stepwise.backward(cell, *arguments, ends, flags, *results, rows)
                else:
                    stepwise_reset_before.backward(*arguments, ends, flags, *results, rows)
                return
            options, sizes = _options(chosen, spec, "backward", output, steps, batch, reverse)
            kernels, grid = _kernels(chosen, spec), chosen.grid(batch, hidden_size)
            scratch = _scratch(chosen, cell, h_0)
            kernels.backward_kernel[grid](
                *arguments, *layout, flags, scratch, *results, *sizes, **options
            )

        _launch(run, plan, cell, "backward", batch, hidden_size, output)
    return (
        grad_gates_x,
        absent(h_0) if grad_gates_h is None else grad_gates_h,
        grad_h_0,
        absent(h_0) if grad_c_0 is None else grad_c_0,
    )


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else aligned(flags)[0].view(torch.uint8)


def _copy_or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return grad.clone(memory_format=torch.contiguous_format)


def _kernels(plan: Plan, spec: CellSpec):
    """The module with the kernels of a schedule."""
    if plan.schedule == "cooperative":
        return cooperative if spec.pointwise else cooperative_reset_before
    return sliced if spec.pointwise else reset_before


def _scratch(plan: Plan, cell: str, h_0: Tensor) -> Tensor | None:
    """Zeroed counters of the cooperative kernels; of the others the state carried in float32."""
    if plan.schedule == "cooperative":
        groups = -(-h_0.shape[0] // plan.block_n)
        return torch.zeros(groups, dtype=torch.int32, device=h_0.device)
    if cell in FUNCTIONS and not FUNCTIONS[cell].carries:
        return None
    return torch.empty(h_0.shape, dtype=torch.float32, device=h_0.device)


def _options(
    plan: Plan, spec: CellSpec, direction: str, like: Tensor, steps: int, batch: int, reverse: bool
) -> tuple[dict, tuple[int, ...]]:
    """Constexpr arguments and launch options, and the sizes: T, N, spans of H, reverse."""
    hidden_size = like.shape[-1]
    options = plan.constants(spec, hidden_size, direction, like.element_size())
    options["PRECISION"] = precision(like.dtype)
    if plan.schedule == "cooperative":
        options |= WAIT_OPTIONS
    if spec.pointwise:
        functions = FUNCTIONS[spec.name]
        options |= {
            direction.upper(): getattr(functions, direction),
            "CARRIES": functions.carries,
            "GATES": spec.gates,
            "SAVED": spec.saved,
        }
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
