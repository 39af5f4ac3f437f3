"""Tensors to kernel launches: allocation, layout, and the plan that a shape gets.

Arguments and results are those of the ops (csrc/ops.cpp). Nothing here waits for the device, unless
`SEQKERNELS_TRITON_TUNE=1` asks for plans to be measured.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from ..cells import CELLS, CellSpec
from . import cooperative, reset_before, sliced
from .cells import FUNCTIONS
from .plan import Plan, candidates, device_of, precision

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# Plans that were measured in this process, by what decides them.
_MEASURED: dict[tuple, Plan] = {}
# How many of the best estimates are measured.
_TUNED = 4


def row_layout(
    lengths: Tensor | None, batch_sizes: Tensor | None, batch: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(lengths [N], offsets [T]) on the device: rows in time for the kernels.

    offsets is the first packed row of every step; None for the padded layout.
    """
    if batch_sizes is None:
        return None if lengths is None else lengths.contiguous(), None
    steps = batch_sizes.shape[0]
    offsets = batch_sizes.cumsum(0) - batch_sizes
    # Row n is as long as there are steps with more than n rows.
    ends = steps - torch.searchsorted(batch_sizes.flip(0), torch.arange(batch), right=True)
    # One copy to the device, not two. The second part begins at an even place: Triton compiles
    # anew for a pointer that is not aligned to 16 bytes.
    both = torch.cat((offsets, offsets[: steps % 2], ends)).to(device, non_blocking=True)
    return both[steps + steps % 2 :], both[:steps]


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
        layout = row_layout(lengths, batch_sizes, batch, gates_x.device)
        inputs = _contiguous(gates_x, weight_hh, bias_hh, h_0)
        state = _contiguous(c_0 if two else None)
        rows = (*layout, _bytes(reset))
        sizes = (steps, batch, hidden_size, int(reverse))

        def run(chosen: Plan) -> None:
            options = _options(chosen, spec, "forward", output)
            grid = chosen.grid(batch, hidden_size)
            if spec.pointwise:
                kernels = cooperative if chosen.cooperative else sliced
                results = (_scratch(chosen, cell, h_0), output, h_n, c_n, c_sequence, saved)
                kernels.forward_kernel[grid](*inputs, *state, *rows, *results, *sizes, **options)
            else:
                # h and z in float32, r * h in the storage dtype.
                floats = (torch.empty_like(inputs[3], dtype=torch.float32) for _ in range(2))
                results = (*floats, torch.empty_like(inputs[3]), output, h_n, saved)
                reset_before.forward_kernel[grid](*inputs, *rows, *results, *sizes, **options)

        _launch(run, plan, cell, "forward", batch, hidden_size, output)
    absent = h_0.new_empty(0)
    return output, h_n, *(absent if x is None else x for x in (c_n, c_sequence, saved))


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
    grad_gates_h = new(*lead, hidden_size) if spec.separate_hidden else None
    # A row of length 0 passes its gradients on.
    grad_h_0 = _copy_or_zeros(grad_h_n, h_0)
    grad_c_0 = _copy_or_zeros(grad_c_n, h_0) if two else None
    if output.numel() > 0:
        layout = row_layout(lengths, batch_sizes, batch, output.device)
        grads = _contiguous(grad_output, grad_h_n)
        grads_c = _contiguous(grad_c_n, grad_c_sequence) if two else [None, None]
        inputs = _contiguous(weight_hh, h_0, c_0 if two else None, output)
        kept = _contiguous(c_sequence if two else None, saved if spec.saved else None)
        rows = (*layout, _bytes(reset))
        sizes = (steps, batch, hidden_size, int(reverse))

        def run(chosen: Plan) -> None:
            options = _options(chosen, spec, "backward", output)
            grid = chosen.grid(batch, hidden_size)
            scratch = _scratch(chosen, cell, h_0)
            if spec.pointwise:
                kernels = cooperative if chosen.cooperative else sliced
                results = (scratch, grad_gates_x, grad_gates_h, grad_h_0, grad_c_0)
                kernels.backward_kernel[grid](
                    *grads, *grads_c, *inputs, *kept, *rows, *results, *sizes, **options
                )
            else:
                weight, h, _, out = inputs
                results = (scratch, grad_gates_x, grad_h_0)
                reset_before.backward_kernel[grid](
                    *grads, weight, h, out, kept[1], *rows, *results, *sizes, **options
                )

        _launch(run, plan, cell, "backward", batch, hidden_size, output)
    absent = h_0.new_empty(0)
    return (
        grad_gates_x,
        absent if grad_gates_h is None else grad_gates_h,
        grad_h_0,
        absent if grad_c_0 is None else grad_c_0,
    )


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.contiguous().view(torch.uint8)


def _copy_or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return grad.clone(memory_format=torch.contiguous_format)


def _scratch(plan: Plan, cell: str, h_0: Tensor) -> Tensor | None:
    """Zeroed counters of the cooperative kernels; of the others the state carried in float32."""
    if plan.cooperative:
        groups = -(-h_0.shape[0] // plan.block_n)
        return torch.zeros(groups, dtype=torch.int32, device=h_0.device)
    if cell in FUNCTIONS and not FUNCTIONS[cell].carries:
        return None
    return torch.empty(h_0.shape, dtype=torch.float32, device=h_0.device)


def _options(plan: Plan, spec: CellSpec, direction: str, like: Tensor) -> dict:
    """Constexpr arguments and launch options."""
    options = plan.constants(spec, like.shape[-1], direction)
    options["PRECISION"] = precision(like.dtype)
    if spec.pointwise:
        functions = FUNCTIONS[spec.name]
        options |= {
            direction.upper(): getattr(functions, direction),
            "CARRIES": functions.carries,
            "GATES": spec.gates,
            "SAVED": spec.saved,
        }
    return options


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
            run(_choose(run, cell, direction, batch, hidden_size, like))
            return
        reason = plan.refusal(
            device, CELLS[cell], batch, hidden_size, direction, like.element_size()
        )
        if reason is not None:
            raise RuntimeError(f"this plan cannot run {cell} {direction}: {reason}")
        run(plan)


def _choose(
    run: Callable[[Plan], None], cell: str, direction: str, batch: int, hidden_size: int,
    like: Tensor,
) -> Plan:  # fmt: skip
    """The cheapest estimate, or the fastest of a few where measuring is asked for."""
    mode = precision(like.dtype)
    # Plans are made for powers of two: a new batch size seldom compiles a new kernel.
    batch = max(16, 1 << (batch - 1).bit_length())
    plans = candidates(
        cell, direction, like.element_size(), mode, batch, hidden_size, device_of(like.device)
    )
    if os.environ.get("SEQKERNELS_TRITON_TUNE") != "1" or torch.cuda.is_current_stream_capturing():
        return plans[0]
    key = (cell, direction, like.dtype, mode, batch, hidden_size, like.device)
    if key not in _MEASURED:
        from triton.testing import do_bench

        times = {p: do_bench(lambda p=p: run(p), warmup=5, rep=20) for p in plans[:_TUNED]}
        _MEASURED[key] = min(times, key=times.get)
    return _MEASURED[key]
