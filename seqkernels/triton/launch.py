"""From tensors to kernel launches: allocation, layout, and the choice of a plan.

Arguments and results are those of the ops (csrc/ops.cpp). Nothing here waits for the device, unless
`SEQKERNELS_TRITON_TUNE=1` turns on the measuring of plans (tune.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cells import CELLS
from ..ops.packed import batch_sizes_on, row_lengths, step_offsets
from ..ops.registry import absent
from . import persistent, sliced, stepwise
from .cells import FUNCTIONS
from .estimate import device_of
from .exchange import WAIT_OPTIONS
from .layout import Layout, layout_of
from .plan import Plan, candidates, power_of_two, precision
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
    cell: str, gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    c_0: Tensor | None, lengths: Tensor | None, batch_sizes: Tensor | None, reset: Tensor | None,
    reverse: bool, save: bool, plan: Plan | None = None,
) -> Results:  # fmt: skip
    """Run `<cell>_sequence`; `plan` overrides the chosen one.

    Returns:
        output, h_n, c_n, c_sequence, saved as in csrc/ops.cpp.
    """
    layout, hidden_size, lead = layout_of(CELLS[cell]), h_0.shape[1], gates_x.shape[:-1]
    c_0 = c_0 if layout.states > 1 else None
    # Rows past their end are not written.
    new = gates_x.new_empty if lengths is None else gates_x.new_zeros
    output = new(*lead, hidden_size)
    c_sequence = None if c_0 is None or not save else new(*lead, c_0.shape[1])
    saved = new(*lead, layout.saved * hidden_size) if save and layout.saved else None
    # A row of length 0 ends as it began.
    h_n = h_0.clone(memory_format=torch.contiguous_format)
    c_n = None if c_0 is None else c_0.clone(memory_format=torch.contiguous_format)
    results = (output, h_n, c_n, c_sequence, saved)
    if output.numel() > 0:
        inputs = aligned(gates_x, weight_hh, bias_hh, h_0, c_0)
        _launch("forward", cell, plan, h_0, inputs, lengths, batch_sizes, reset, reverse, results)
    return output, h_n, *(absent(h_0) if x is None else x for x in results[2:])


def backward(
    cell: str, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None,
    grad_c_sequence: Tensor | None, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    c_0: Tensor | None, output: Tensor, c_sequence: Tensor, saved: Tensor, lengths: Tensor | None,
    batch_sizes: Tensor | None, reset: Tensor | None, reverse: bool, plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run `<cell>_sequence_backward`; `plan` overrides the chosen one.

    Returns:
        grad_gates_x, grad_gates_h, grad_h_0, grad_c_0 as in csrc/ops.cpp.
    """
    layout, hidden_size, lead = layout_of(CELLS[cell]), h_0.shape[1], output.shape[:-1]
    c_0 = c_0 if layout.states > 1 else None
    new = output.new_empty if lengths is None else output.new_zeros
    grad_gates_x = new(*lead, layout.gates * hidden_size)
    grad_gates_h = new(*lead, layout.columns * hidden_size) if layout.columns else None
    # A row of length 0 passes its gradients on.
    grad_h_0 = stepwise.copy_or_zeros(grad_h_n, h_0)
    grad_c_0 = None if c_0 is None else stepwise.copy_or_zeros(grad_c_n, c_0)
    results = (grad_gates_x, grad_gates_h, grad_h_0, grad_c_0)
    if output.numel() > 0:
        if c_0 is None:
            grad_c_n = grad_c_sequence = c_sequence = None
        bias_hh, saved = bias_hh if layout.parameters else None, saved if layout.saved else None
        inputs = aligned(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, bias_hh, h_0,
                         c_0, output, c_sequence, saved)  # fmt: skip
        _launch("backward", cell, plan, h_0, inputs, lengths, batch_sizes, reset, reverse, results)
    grad_gates_h, grad_c_0 = (absent(h_0) if x is None else x for x in results[1::2])
    return grad_gates_x, grad_gates_h, grad_h_0, grad_c_0


def _scratch(plan: Plan, layout: Layout, direction: str, h_0: Tensor) -> list[Tensor | None]:
    """Zeroed counters for the persistent kernels; for sliced ones room for carried states.

    Forward also room for what one stage of a step passes to the next.
    """
    batch, hidden_size = h_0.shape

    def room(count: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return h_0.new_empty(batch, count * hidden_size, dtype=dtype) if count else None

    if plan.schedule == "persistent":
        groups = -(-batch // plan.block_n)
        found = [torch.zeros(groups, dtype=torch.int32, device=h_0.device)]
    else:
        found = [room(layout.states - layout.first_carried)]
    if direction == "forward":
        found += [] if plan.schedule == "persistent" else [room(layout.kept)]
        found.append(room(len(layout.stages) - 1, h_0.dtype))
    return found


def _launch(
    direction: str, cell: str, plan: Plan | None, h_0: Tensor, inputs: Sequence[Tensor | None],
    lengths: Tensor | None, batch_sizes: Tensor | None, reset: Tensor | None, reverse: bool,
    results: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Fill the results with the given plan, or the chosen one.

    Raises:
        RuntimeError: the given plan cannot run; the message says why.
    """
    spec, like = CELLS[cell], results[0]
    (batch, hidden_size), itemsize, device = h_0.shape, like.element_size(), device_of(like.device)
    steps = like.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    rows = row_layout(lengths, batch_sizes, batch, like)
    flags = None if reset is None else aligned(reset)[0].view(torch.uint8)

    def run(chosen: Plan) -> None:
        if chosen.schedule == "stepwise":
            order = stepwise.places(steps, batch, batch_sizes, reverse)
            ends = None if batch_sizes is not None else rows[0]
            getattr(stepwise, direction)(cell, *inputs, ends, flags, *results, order)
            return
        layout, mode = layout_of(spec), precision(like.dtype)
        options = chosen.constants(spec, hidden_size, direction, itemsize)
        options |= {"PRECISION": mode, "CELL": layout}
        options[direction.upper()] = getattr(FUNCTIONS[cell], direction)
        kernels = sliced
        if chosen.schedule == "persistent":
            options |= WAIT_OPTIONS
            kernels = persistent
        getattr(kernels, f"{direction}_kernel")[chosen.grid(batch, hidden_size)](
            *inputs, *rows, flags, *_scratch(chosen, layout, direction, h_0), *results, steps,
            batch, hidden_size // options["SPAN"], int(reverse), **options,
        )  # fmt: skip

    with torch.cuda.device_of(like):
        if plan is None:
            # Plans are made for powers of two: a new batch size seldom compiles a new kernel.
            bucket = max(16, power_of_two(batch))
            mode = precision(like.dtype)
            shape = (cell, direction, itemsize, mode, bucket, hidden_size)
            key = (cell, direction, str(like.dtype), mode, bucket, hidden_size)
            plan = choose(candidates(*shape, device), key, run, like.device)
        elif reason := plan.refusal(device, spec, batch, hidden_size, direction, itemsize):
            raise RuntimeError(f"this plan cannot run {cell} {direction}: {reason}")
        run(plan)
