"""What kernels and plans derive from a cell's declaration: host only, importable without Triton.

It is passed to a kernel as one constexpr argument, CELL. All of it is plain values, so its text is
the same in every process, and so is the name under which Triton keeps a compiled kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..cells import CellSpec, Run, Stage


@dataclass(frozen=True)
class StageLayout:
    """A stage (seqkernels/cells.py) and the products of the backward through it.

    Attributes:
        first_gate, gates: its rows of weight_hh, in units of H.
        runs: its products, in the order of their rows.
        first_run: how many products the stages before it have.
        saved_at, grad_at, beside_at: of every saved value, gate and column of grad_gates_h: its
            place among what the stage gives, -1 where another stage does.
        own_gates, own_columns: of every gate and column: whether its products read the gradient.
    """

    first_gate: int
    gates: int
    runs: tuple[Run, ...]
    first_run: int
    saved_at: tuple[int, ...]
    grad_at: tuple[int, ...]
    beside_at: tuple[int, ...]
    own_gates: tuple[bool, ...]
    own_columns: tuple[bool, ...]


@dataclass(frozen=True, eq=False)  # compared by identity: Triton looks it up at every launch
class Layout:
    """What a kernel must know of a cell.

    Attributes:
        gates, states, saved, parameters: as in CellSpec.
        columns: of grad_gates_h, in units of H.
        column_of: of every gate: its column there, -1 where its gradient is in grad_gates_x.
        first_carried: 0 if kernels carry h in float32 between steps beside the other states, else
            1: where h enters a step through its products alone.
        carries: of every state, whether kernels carry it in float32.
        reads_state, reads_new_state: of every state, whether the backward reads it.
        kept: how many saved values later stages of a step read.
        kept_at: of every saved value: its place among those, -1 where none reads it.
        stages: the stages.
    """

    gates: int
    states: int
    saved: int
    parameters: int
    columns: int
    column_of: tuple[int, ...]
    first_carried: int
    carries: tuple[bool, ...]
    reads_state: tuple[bool, ...]
    reads_new_state: tuple[bool, ...]
    kept: int
    kept_at: tuple[int, ...]
    stages: tuple[StageLayout, ...]


def _places(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """Of every number below `count`: its place in `numbers`, or -1."""
    return tuple(numbers.index(k) if k in numbers else -1 for k in range(count))


def _stage(spec: CellSpec, stage: Stage, runs: tuple[Run, ...], first_run: int) -> StageLayout:
    column_of = _places(spec.separate, spec.gates)
    own = [0 <= gate - stage.first_gate < stage.gates for gate in range(spec.gates)]
    beside = [column_of[gate] for gate in stage.grads if column_of[gate] >= 0]
    beside += [len(spec.separate) + parameter for parameter in stage.parameters]
    return StageLayout(
        first_gate=stage.first_gate,
        gates=stage.gates,
        runs=runs,
        first_run=first_run,
        saved_at=_places(stage.saves, spec.saved),
        grad_at=_places(stage.grads, spec.gates),
        beside_at=_places(beside, spec.separate_columns),
        own_gates=tuple(own),
        own_columns=(*(own[gate] for gate in spec.separate), *[False] * spec.parameters),
    )


def _layout(spec: CellSpec) -> Layout:
    stages: list[StageLayout] = []
    for stage, runs in zip(spec.stages, spec.runs, strict=True):
        stages.append(_stage(spec, stage, runs, sum(len(before.runs) for before in stages)))
    return Layout(
        gates=spec.gates,
        states=spec.states,
        saved=spec.saved,
        parameters=spec.parameters,
        columns=spec.separate_columns,
        column_of=_places(spec.separate, spec.gates),
        first_carried=0 if spec.uses_h else 1,
        carries=tuple(k > 0 or spec.uses_h for k in range(spec.states)),
        reads_state=tuple(k in spec.reads_state for k in range(spec.states)),
        reads_new_state=tuple(k in spec.reads_new_state for k in range(spec.states)),
        kept=len(spec.kept),
        kept_at=_places(spec.kept, spec.saved),
        stages=tuple(stages),
    )


# By identity, and with the cell, which keeps it valid: the hash of a cell costs microseconds.
_LAYOUTS: dict[int, tuple[CellSpec, Layout]] = {}


def layout_of(spec: CellSpec) -> Layout:
    """What kernels need to know of a cell."""
    if id(spec) not in _LAYOUTS:
        _LAYOUTS[id(spec)] = (spec, _layout(spec))
    return _LAYOUTS[id(spec)][1]
