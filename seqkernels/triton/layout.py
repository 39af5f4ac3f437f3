"""What kernels and plans derive from a cell's declaration: host only, importable without Triton.

A kernel gets it as one constexpr argument, CELL. All of it is plain values, so its text is the same
in every process, and with it the name under which Triton keeps a compiled kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..cells import CellSpec, Stage


@dataclass(frozen=True)
class Run:
    """A product of the backward: neighbouring gates of a stage with gradients in one tensor.

    Attributes:
        separate: they stand in grad_gates_h, not in grad_gates_x.
        column: its first column there, in units of H.
        row: its first row of weight_hh, in units of H.
        gates: how many.
    """

    separate: bool
    column: int
    row: int
    gates: int


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


@dataclass(frozen=True)
class Layout:
    """What a kernel must know of a cell.

    Attributes:
        gates, states, saved, parameters: as in CellSpec.
        columns: of grad_gates_h, in units of H.
        column_of: of every gate: its column there, -1 where its gradient stands in grad_gates_x.
        first_carried: 0 if kernels carry h in float32 between steps beside the other states, else
            1: where a step reads h through its product alone. What a step reads of h, its backward
            needs too, so a cell says it with `reads_state`; otherwise it is not given h.
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
    reads_state: tuple[bool, ...]
    reads_new_state: tuple[bool, ...]
    kept: int
    kept_at: tuple[int, ...]
    stages: tuple[StageLayout, ...]

    @property
    def carried(self) -> int:
        """States that are carried in float32."""
        return self.states - self.first_carried

    @property
    def others(self) -> int:
        """States beside h, which stand side by side."""
        return self.states - 1


def _places(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """Of every number below `count`: its place in `numbers`, or -1."""
    return tuple(numbers.index(k) if k in numbers else -1 for k in range(count))


def _runs(stage: Stage, column_of: tuple[int, ...]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for gate in range(stage.first_gate, stage.first_gate + stage.gates):
        separate = column_of[gate] >= 0
        if runs and runs[-1].separate == separate:
            last = runs.pop()
            runs.append(Run(separate, last.column, last.row, last.gates + 1))
        else:
            runs.append(Run(separate, column_of[gate] if separate else gate, gate, 1))
    return tuple(runs)


@lru_cache(maxsize=64)
def layout_of(spec: CellSpec) -> Layout:
    """What kernels are told of a cell.

    Raises:
        ValueError: several stages and parameters: which stage gives their gradients is not said.
    """
    if spec.parameters and len(spec.stages) > 1:
        raise ValueError(f"{spec.name}: a cell with parameters must have one stage")
    column_of, parameters = _places(spec.separate, spec.gates), (False,) * spec.parameters
    stages: list[StageLayout] = []
    first_run = 0
    for stage in spec.stages:
        own = [0 <= gate - stage.first_gate < stage.gates for gate in range(spec.gates)]
        beside = [column_of[gate] for gate in stage.grads if column_of[gate] >= 0]
        beside += range(len(spec.separate), spec.separate_columns)
        runs = _runs(stage, column_of)
        stages.append(
            StageLayout(
                first_gate=stage.first_gate,
                gates=stage.gates,
                runs=runs,
                first_run=first_run,
                saved_at=_places(stage.saves, spec.saved),
                grad_at=_places(stage.grads, spec.gates),
                beside_at=_places(beside, spec.separate_columns),
                own_gates=tuple(own),
                own_columns=(*(own[gate] for gate in spec.separate), *parameters),
            )
        )
        first_run += len(runs)
    return Layout(
        gates=spec.gates,
        states=spec.states,
        saved=spec.saved,
        parameters=spec.parameters,
        columns=spec.separate_columns,
        column_of=column_of,
        first_carried=0 if 0 in spec.reads_state else 1,
        reads_state=tuple(k in spec.reads_state for k in range(spec.states)),
        reads_new_state=tuple(k in spec.reads_new_state for k in range(spec.states)),
        kept=len(spec.kept),
        kept_at=_places(spec.kept, spec.saved),
        stages=tuple(stages),
    )
