"""The states of a cell in memory and between steps: tuples of blocks, one for each state.

h has tensors of its own, [.., H]; all other states lie side by side in one more, [.., (S-1)*H],
and so do those that are carried between steps in float32. `at` are rows and `units` units, in any
shapes that broadcast to a block. () stands for a state that is not carried, or not read.
"""

import triton
import triton.language as tl

from .tiles import load_planes, store_saved


@triton.jit
def place_of(at, units, H, COUNT: tl.constexpr, NUMBER: tl.constexpr):
    """Offset of one of COUNT values of each unit that lie side by side in a row."""
    return at * (COUNT * H) + (NUMBER * H + units)


@triton.jit
def state_at(h, c, at, units, H, STATE: tl.constexpr, CELL: tl.constexpr):
    """Pointers to a state in the tensor of h, or in that of the others."""
    if STATE == 0:
        return h + place_of(at, units, H, 1, 0)
    else:
        return c + place_of(at, units, H, CELL.states - 1, STATE - 1)


@triton.jit
def load_states(h, c, at, units, mask, H, READS: tl.constexpr, CELL: tl.constexpr):
    """Those of the states at `at` that READS says."""
    found = ()
    for k in tl.static_range(len(READS)):
        if READS[k]:
            state = state_at(h, c, at, units, H, k, CELL)
            found = found + (tl.load(state, mask=mask, other=0.0).to(tl.float32),)
        else:
            found = found + ((),)
    return found


@triton.jit
def store_states(h, c, states, at, units, mask, H, CELL: tl.constexpr):
    """Store every state for which there is a tensor."""
    STATES: tl.constexpr = CELL.states
    for k in tl.static_range(STATES):
        if (h if k == 0 else c) is not None:
            tl.store(state_at(h, c, at, units, H, k, CELL), states[k], mask=mask)


@triton.jit
def add_states(values, h, c, at, units, mask, H, CELL: tl.constexpr):
    """`values` of every state plus, where there is a tensor, what it holds at `at`."""
    STATES: tl.constexpr = CELL.states
    sums = ()
    for k in tl.static_range(STATES):
        total = values[k]
        if (h if k == 0 else c) is not None:
            state = state_at(h, c, at, units, H, k, CELL)
            total += tl.load(state, mask=mask, other=0.0).to(tl.float32)
        sums = sums + (total,)
    return sums


@triton.jit
def carried_at(carried, at, units, H, STATE: tl.constexpr, CELL: tl.constexpr):
    """Pointers to a state among those that are carried."""
    FIRST: tl.constexpr = CELL.first_carried
    return carried + place_of(at, units, H, CELL.states - FIRST, STATE - FIRST)


@triton.jit
def load_carried(carried, rows, units, mask, H, CELL: tl.constexpr):
    """What is carried, zero where the mask is off."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    found = ((),) * FIRST
    for k in tl.static_range(FIRST, STATES):
        state = carried_at(carried, rows, units, H, k, CELL)
        found = found + (tl.load(state, mask=mask, other=0.0),)
    return found


@triton.jit
def store_carried(carried, states, rows, units, mask, H, CELL: tl.constexpr):
    """Store what is carried of a tuple of all states."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    for k in tl.static_range(FIRST, STATES):
        tl.store(carried_at(carried, rows, units, H, k, CELL), states[k], mask=mask)


@triton.jit
def where_carried(mask, states, others, CELL: tl.constexpr):
    """Of every carried state that of `states` where the mask is on, else the other, or zero."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    found = ((),) * FIRST
    for k in tl.static_range(FIRST, STATES):
        found = found + (tl.where(mask, states[k], 0.0 if others is None else others[k]),)
    return found


@triton.jit
def add(first, second, WHICH: tl.constexpr):
    """The sums of those of the states that WHICH says; None stands for zeros."""
    sums = ()
    for k in tl.static_range(len(WHICH)):
        if WHICH[k]:
            sums = sums + (second[k] if first is None else first[k] + second[k],)
        else:
            sums = sums + ((),)
    return sums


@triton.jit
def flowing(grad, passed, CELL: tl.constexpr):
    """Gradients of all states after a step: `grad` through products, `passed` beside them."""
    STATES: tl.constexpr = CELL.states
    grads = (grad + passed[0] if CELL.carries[0] else grad,)
    for k in tl.static_range(1, STATES):
        grads = grads + (passed[k],)
    return grads


@triton.jit
def load_for_backward(output, c_sequence, saved, at, mask, h_0, c_0, before, follows, rows, begins,
                      units, H, CELL: tl.constexpr):  # fmt: skip
    """What a backward reads of a step: (saved values, states before it, states after it).

    The states before are those of the step at `before`, the first ones, or zero.
    """
    READS: tl.constexpr = CELL.reads_state
    READS_NEW: tl.constexpr = CELL.reads_new_state
    new_state = load_states(output, c_sequence, at, units, mask, H, READS_NEW, CELL)
    last = load_states(output, c_sequence, before, units, follows, H, READS, CELL)
    first = load_states(h_0, c_0, rows, units, begins, H, READS, CELL)
    values = load_planes(saved, at, units, mask, H, CELL.saved)
    return values, add(last, first, READS), new_state


@triton.jit
def load_between(between, rows, units, mask, H, CELL: tl.constexpr, STAGE: tl.constexpr):
    """The saved values that earlier stages of a step have left, () for others."""
    SAVED: tl.constexpr = CELL.saved
    found = ()
    for k in tl.static_range(SAVED):
        if STAGE > 0 and CELL.kept_at[k] >= 0:
            place = place_of(rows, units, H, CELL.kept, CELL.kept_at[k])
            found = found + (tl.load(between + place, mask=mask, other=0.0),)
        else:
            found = found + ((),)
    return found


@triton.jit
def store_stage(results, values, operands, between, carried, output, c_sequence, h_n, c_n, saved,
                at, mask, rows, last_mask, units, H, CELL: tl.constexpr,
                STAGE: tl.constexpr):  # fmt: skip
    """Store what a stage gives: for the next stage, or the new states; and its saved values."""
    SAVED: tl.constexpr = CELL.saved
    SAVED_AT: tl.constexpr = CELL.stages[STAGE].saved_at
    MORE: tl.constexpr = len(CELL.stages) - 1
    if STAGE < MORE:
        tl.store(operands + place_of(rows, units, H, MORE, STAGE), results[0], mask=mask)
        for k in tl.static_range(SAVED):
            if CELL.kept_at[k] >= 0 and SAVED_AT[k] >= 0:
                place = place_of(rows, units, H, CELL.kept, CELL.kept_at[k])
                tl.store(between + place, values[SAVED_AT[k]], mask=mask)
    else:
        store_carried(carried, results, rows, units, mask, H, CELL)
        store_states(output, c_sequence, results, at, units, mask, H, CELL)
        store_states(h_n, c_n, results, rows, units, last_mask, H, CELL)
    store_saved(saved, values, at, units, mask, H, CELL, STAGE)
