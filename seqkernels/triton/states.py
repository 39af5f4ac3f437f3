"""The states of a cell in memory and between steps: tuples of blocks, one for each state.

h has tensors of its own, [.., H]; all other states stand side by side in one more, [.., (S-1)*H],
and so do those that are carried between steps in float32. `at` are rows and `units` units, in any
shapes that broadcast to a block. () stands for a state that is not carried, or not read.
"""

import triton
import triton.language as tl

from .tiles import load_either


@triton.jit
def place_of(at, units, H, COUNT: tl.constexpr, NUMBER: tl.constexpr):
    """Offset of one of COUNT values of each unit that stand side by side in a row."""
    return at * (COUNT * H) + (NUMBER * H + units)


@triton.jit
def state_place(at, units, H, STATE: tl.constexpr, CELL: tl.constexpr):
    """Offset of a state in its tensor."""
    if STATE == 0:
        return place_of(at, units, H, 1, 0)
    else:
        return place_of(at, units, H, CELL.states - 1, STATE - 1)


@triton.jit
def carried_place(at, units, H, STATE: tl.constexpr, CELL: tl.constexpr):
    """Offset of a state among those that are carried."""
    FIRST: tl.constexpr = CELL.first_carried
    return place_of(at, units, H, CELL.states - FIRST, STATE - FIRST)


@triton.jit
def load_entering(carried, continued, h_0, c_0, begun, rows, units, H, CELL: tl.constexpr):
    """The states that enter a step: carried, the first ones, or zero."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    found = ((),) * FIRST
    for k in tl.static_range(FIRST, STATES):
        first = (h_0 if k == 0 else c_0) + state_place(rows, units, H, k, CELL)
        carry = carried + carried_place(rows, units, H, k, CELL)
        found = found + (load_either(carry, continued, first, begun),)
    return found


@triton.jit
def load_carried(carried, rows, units, mask, H, CELL: tl.constexpr):
    """What is carried, zero where the mask is off."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    found = ((),) * FIRST
    for k in tl.static_range(FIRST, STATES):
        carry = carried + carried_place(rows, units, H, k, CELL)
        found = found + (tl.load(carry, mask=mask, other=0.0),)
    return found


@triton.jit
def store_carried(carried, states, rows, units, mask, H, CELL: tl.constexpr):
    """Store what is carried of a tuple of all states."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    for k in tl.static_range(FIRST, STATES):
        tl.store(carried + carried_place(rows, units, H, k, CELL), states[k], mask=mask)


@triton.jit
def load_old(output, c_sequence, before, follows, h_0, c_0, rows, begins, units, H,
             CELL: tl.constexpr):  # fmt: skip
    """The states before a step that a backward reads.

    They are those of the step at `before`, the first ones, or zero.
    """
    STATES: tl.constexpr = CELL.states
    found = ()
    for k in tl.static_range(STATES):
        if CELL.reads_state[k]:
            sequence = output if k == 0 else c_sequence
            first = h_0 if k == 0 else c_0
            found = found + (
                load_either(
                    sequence + state_place(before, units, H, k, CELL), follows,
                    first + state_place(rows, units, H, k, CELL), begins,
                ),
            )  # fmt: skip
        else:
            found = found + ((),)
    return found


@triton.jit
def load_states(h, c, at, units, mask, H, READS: tl.constexpr, CELL: tl.constexpr):
    """Those of the states at `at` that READS says."""
    STATES: tl.constexpr = CELL.states
    found = ()
    for k in tl.static_range(STATES):
        if READS[k]:
            state = (h if k == 0 else c) + state_place(at, units, H, k, CELL)
            found = found + (tl.load(state, mask=mask, other=0.0).to(tl.float32),)
        else:
            found = found + ((),)
    return found


@triton.jit
def store_new(output, c_sequence, at, tile, h_n, c_n, rows, last_tile, states, units, H,
              CELL: tl.constexpr):  # fmt: skip
    """Store the states after a step at `at`, and those of rows that end there as the final ones.

    Tensors may be None.
    """
    STATES: tl.constexpr = CELL.states
    for k in tl.static_range(STATES):
        sequence = output if k == 0 else c_sequence
        final = h_n if k == 0 else c_n
        if sequence is not None:
            tl.store(sequence + state_place(at, units, H, k, CELL), states[k], mask=tile)
        if final is not None:
            tl.store(final + state_place(rows, units, H, k, CELL), states[k], mask=last_tile)


@triton.jit
def add_carried(first, second, CELL: tl.constexpr):
    """The sums of two tuples of all states, where they are carried."""
    FIRST: tl.constexpr = CELL.first_carried
    STATES: tl.constexpr = CELL.states
    sums = ((),) * FIRST
    for k in tl.static_range(FIRST, STATES):
        sums = sums + (first[k] + second[k],)
    return sums


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
def store_between(between, values, rows, units, mask, H, CELL: tl.constexpr, STAGE: tl.constexpr):
    """Leave saved values of a stage to later stages of the step."""
    SAVED: tl.constexpr = CELL.saved
    SAVED_AT: tl.constexpr = CELL.stages[STAGE].saved_at
    for k in tl.static_range(SAVED):
        if CELL.kept_at[k] >= 0 and SAVED_AT[k] >= 0:
            place = place_of(rows, units, H, CELL.kept, CELL.kept_at[k])
            tl.store(between + place, values[SAVED_AT[k]], mask=mask)
