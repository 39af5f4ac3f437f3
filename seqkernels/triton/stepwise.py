"""The stepwise schedule: for each stage of a step a product through torch and a fused cell kernel.

For what no other schedule runs well: large batches of large H. It takes every shape,
never waits for the device and can be captured in a CUDA graph. The products follow torch's own
switch for TF32 in matrix products, as csrc/cuda/stepwise/stepwise.cpp does.
Kernels: program (p, q) owns rows p, p + programs, ... of the batch, in the q-th block of BLOCK
units. On chip: everything between the loads and the stores, in float32.
Between steps: h in the storage dtype, where the product reads it; what is carried in float32.

Limitations: the host launches two kernels a stage.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import CELLS
from . import states, tiles
from .cells import FUNCTIONS
from .layout import Layout, layout_of
from .pointwise import launch_rows


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at"])
def forward_kernel(
    gates_x, products, bias, h, carried, between, operands, lengths, reset, output, c_sequence,
    saved, N, spans, rows, t, at, SPAN: tl.constexpr, CELL: tl.constexpr, FORWARD: tl.constexpr,
    STAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A stage of step t of `rows` rows, whose places in the sequence begin at row `at`.

    Shapes: gates_x, output, c_sequence, saved as in csrc/ops.cpp; `products` are of the stage's
    gates, [N, ..*H], without bias; h [N, H] and float32 `carried` [N, ..*H] are read and written.
    Saved values for later stages go through `between`, float32 [N, ..*H], and what their products
    read to `operands` [N, (stages - 1) * H].
    """
    H = spans * SPAN
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for n in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        limit = tiles.row_limit(lengths, row, t, H)
        mask = units < limit
        enters = units < tiles.entering_limit(reset, row, t, N, limit)
        # In a row that is reset, the product of the first stage has read an h that does not enter.
        read = enters if STAGE == 0 else mask
        planes = tiles.load_planes(products, row, units, read, H, CELL.stages[STAGE].gates)
        biases = tiles.load_vectors(bias, units, mask, H, 0, CELL.gates)
        gates_h = tiles.gates_of(planes, bias, biases, CELL, STAGE)
        state = states.load_carried(carried, row, units, enters, H, CELL)
        parameters = tiles.load_vectors(bias, units, mask, H, CELL.gates, CELL.parameters)
        before = states.load_between(between, row, units, mask, H, CELL, STAGE)
        inputs = tiles.load_planes(gates_x, at + row, units, mask, H, CELL.gates)
        results, values = FORWARD(inputs, gates_h, state, parameters, before, STAGE)
        states.store_stage(
            results, values, operands, between, carried, output, c_sequence, h, None, saved,
            at + row, mask, row, mask, units, H, CELL, STAGE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "spans", "rows", "t", "at", "before", "before_rows",
                               "before_at", "behind"])  # fmt: skip
def backward_kernel(
    grad_output, grad_c_sequence, recurrent, grad_operand, carried_h, carried_c, bias, h_0, c_0,
    output, c_sequence, saved, lengths, reset, grad_gates_x, grad_gates_h, through, N, spans, rows,
    t, at, before, before_rows, before_at, behind, SPAN: tl.constexpr, CELL: tl.constexpr,
    BACKWARD: tl.constexpr, STAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a stage of step t, of whose N rows the first `rows` have a place, from `at`.

    `before` is the step whose state entered, or -1, with `before_rows` rows from `before_at` on;
    `behind` the step that the backward came from, or -1. `recurrent` is what came through its
    product, `grad_operand` what came through that of the stage behind; carried_h and carried_c,
    float32, are the rest, and in rows past their end everything. `through` [N, G*H] holds the
    gradients that flow through the products, for cells with separate gates.
    """
    H = spans * SPAN
    STATES: tl.constexpr = CELL.states
    STAGES: tl.constexpr = len(CELL.stages)
    LAST: tl.constexpr = STAGE + 1 == STAGES
    units = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    unit_mask = units < H
    for n in range(tl.program_id(0), N if LAST else rows, tl.num_programs(0)):
        row = tl.cast(n, tl.int64)
        limit = tiles.row_limit(lengths, row, t, tl.where(n < rows, H, 0))
        mask = units < limit
        enters_limit = tiles.entering_limit(reset, row, t, N, limit)
        enters = units < enters_limit
        follow_limit = tl.where(n < before_rows, enters_limit, 0)
        follow_limit = tiles.row_limit(lengths, row, before, follow_limit)
        place = states.place_of(row, units, H, 1, 0)
        if LAST:
            ended = unit_mask & (units >= limit)
            flows = units < tiles.entering_limit(reset, row, behind, N, H)
            grad = tl.load(carried_h + place, mask=unit_mask, other=0.0)
            grad += tl.load(recurrent + place, mask=flows, other=0.0).to(tl.float32)
            tl.store(carried_h + place, grad, mask=ended)
            tl.store(recurrent + place, tl.zeros((BLOCK,), tl.float32), mask=ended)
            grads = (grad,)
            for k in tl.static_range(1, STATES):
                state = states.state_at(None, carried_c, row, units, H, k, CELL)
                grads = grads + (tl.load(state, mask=mask, other=0.0),)
            grads = states.add_states(grads, grad_output, grad_c_sequence, at + row, units, mask, H,
                                      CELL)  # fmt: skip
        else:
            grads = (tl.load(grad_operand + place, mask=mask, other=0.0).to(tl.float32),)
        values, old_state, new_state = states.load_for_backward(
            output, c_sequence, saved, at + row, mask, h_0, c_0, before_at + row,
            units < follow_limit, row, enters & (units >= follow_limit), units, H, CELL,
        )  # fmt: skip
        parameters = tiles.load_vectors(bias, units, mask, H, CELL.gates, CELL.parameters)
        grad_x, beside, grad_state = BACKWARD(
            values, old_state, new_state, parameters, grads, STAGE
        )
        tiles.store_grads(grad_gates_x, grad_gates_h, grad_x, beside, at + row, units, mask, H,
                          CELL, STAGE, None)  # fmt: skip
        if through is not None:
            tiles.store_through(
                through, grad_x, beside, row, units, unit_mask, mask, H, CELL, STAGE
            )
        for k in tl.static_range(STATES):
            carried = states.state_at(carried_h, carried_c, row, units, H, k, CELL)
            if LAST:
                tl.store(carried, tl.where(enters, grad_state[k], 0.0), mask=mask)
            elif k >= CELL.first_carried:
                passed = tl.load(carried, mask=enters, other=0.0)
                tl.store(carried, passed + grad_state[k], mask=enters)


# A step: its number, how many rows it has and the first of them.
Place = tuple[int, int, int]


def places(steps: int, batch: int, batch_sizes: Tensor | None, reverse: bool) -> list[Place]:
    """Where the steps of a sequence lie, in the order of a direction.

    Args:
        steps: T.
        batch: N.
        batch_sizes: rows alive at every step, int64 on the CPU, [T], or None.
        reverse: the sequence is run from its end.
    """
    sizes = [batch] * steps if batch_sizes is None else batch_sizes.tolist()
    found = [*zip(range(steps), sizes, accumulate(sizes, initial=0), strict=False)]
    return found[::-1] if reverse else found


def forward(
    cell: str, gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    c_0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, output: Tensor, h_n: Tensor,
    c_n: Tensor | None, c_sequence: Tensor | None, saved: Tensor | None, steps: list[Place],
) -> None:  # fmt: skip
    """Fill the results; tensors are contiguous, reset is uint8."""
    function, layout = FUNCTIONS[cell].forward, layout_of(CELLS[cell])
    batch, hidden_size = h_0.shape
    stages = layout.stages
    weights = _weights(layout, weight_hh)
    products = [h_0.new_empty(batch, stage.gates * hidden_size) for stage in stages]
    first = [x for x in (h_0, c_0)[layout.first_carried :] if x is not None]
    carried = torch.cat([x.float() for x in first], 1) if first else None
    operands = between = None
    if len(stages) > 1:
        operands = h_0.new_zeros(batch, (len(stages) - 1) * hidden_size)
        between = h_0.new_empty(batch, layout.kept * hidden_size, dtype=torch.float32)
    h_n.copy_(h_0)
    # What the product of every stage reads.
    lefts = (h_n, *(() if operands is None else operands.split(hidden_size, 1)))
    for t, rows, at in steps:
        for i, (left, weight, product) in enumerate(zip(lefts, weights, products, strict=True)):
            torch.mm(left[:rows], weight.t(), out=product[:rows])
            launch_rows(
                forward_kernel, rows, h_0,
                (gates_x, product, bias_hh, h_n, carried, between, operands, lengths, reset, output,
                 c_sequence, saved, batch),
                (rows, t, at), CELL=layout, FORWARD=function, STAGE=i,
            )  # fmt: skip
    if c_n is not None:
        c_n.copy_(carried[:, -c_n.shape[1] :])


def backward(
    cell: str, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None,
    grad_c_sequence: Tensor | None, weight_hh: Tensor, bias_hh: Tensor | None, h_0: Tensor,
    c_0: Tensor | None, output: Tensor, c_sequence: Tensor | None, saved: Tensor | None,
    lengths: Tensor | None, reset: Tensor | None, grad_gates_x: Tensor,
    grad_gates_h: Tensor | None, grad_h_0: Tensor, grad_c_0: Tensor | None,
    steps: list[Place],
) -> None:  # fmt: skip
    """Fill the gradients; tensors are contiguous, reset is uint8."""
    function, layout = FUNCTIONS[cell].backward, layout_of(CELLS[cell])
    batch, hidden_size = h_0.shape
    weights = _weights(layout, weight_hh)
    recurrent = torch.zeros_like(h_0)
    grad_operand = torch.empty_like(h_0) if len(weights) > 1 else None
    carried_h = copy_or_zeros(grad_h_n, h_0, torch.float32)
    carried_c = None if c_0 is None else copy_or_zeros(grad_c_n, c_0, torch.float32)
    separate = max(layout.column_of) >= 0
    through = h_0.new_empty(batch, layout.gates * hidden_size) if separate else None
    rows_of_grads = grad_gates_x.view(-1, layout.gates * hidden_size)
    behind, entered = -1, [(-1, 0, 0), *steps[:-1]]
    for (t, rows, at), before in zip(reversed(steps), reversed(entered), strict=True):
        for i in reversed(range(len(weights))):
            launch_rows(
                backward_kernel, batch if i + 1 == len(weights) else rows, h_0,
                (grad_output, grad_c_sequence, recurrent, grad_operand, carried_h, carried_c,
                 bias_hh, h_0, c_0, output, c_sequence, saved, lengths, reset, grad_gates_x,
                 grad_gates_h, through, batch),
                (rows, t, at, *before, behind), CELL=layout, BACKWARD=function, STAGE=i,
            )  # fmt: skip
            grads = through[:rows] if separate else rows_of_grads[at : at + rows]
            first = layout.stages[i].first_gate * hidden_size
            grads = grads[:, first : first + weights[i].shape[0]]
            torch.mm(grads, weights[i], out=(grad_operand if i else recurrent)[:rows])
        behind = t
    if reset is not None:
        recurrent.masked_fill_(reset[behind].bool().unsqueeze(-1), 0)
    grad_h_0.copy_(carried_h.add_(recurrent))
    if grad_c_0 is not None:
        grad_c_0.copy_(carried_c)


def _weights(layout: Layout, weight_hh: Tensor) -> tuple[Tensor, ...]:
    """The weights of each stage's product, [gates * H, H]."""
    return weight_hh.split([stage.gates * weight_hh.shape[1] for stage in layout.stages])


def copy_or_zeros(grad: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous copy of a gradient; zeros for an absent one."""
    if grad is None:
        return torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    return grad.to(dtype or grad.dtype, copy=True, memory_format=torch.contiguous_format)
