"""The table of cells: what csrc/cells/ declares of each, as values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """One recurrent product of a step and the pointwise work after it.

    Attributes:
        first_gate, gates: its rows of weight_hh, in units of H.
        grads: gates whose gradients its backward computes.
        saves: saved values that its forward sets.
        parameters: those whose gradients its backward computes.
    """

    first_gate: int
    gates: int
    grads: tuple[int, ...]
    saves: tuple[int, ...]
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """Neighbouring gates of a stage whose gradients on the recurrent side lie in one tensor.

    In grad_gates_h if they are `separate`, else in grad_gates_x, they begin at `column`; `row` is
    their first one of weight_hh. All in units of H.
    """

    separate: bool
    column: int
    row: int
    gates: int


@dataclass(frozen=True)
class CellSpec:
    """What the ops, kernels, layers and tests need to know of a cell (csrc/cells/contract.h).

    Attributes:
        name: prefix of its ops, `seqkernels::<name>_sequence`.
        gates: pre-activations per hidden unit, G; weights have G*H rows.
        states: 1 for h, 2 for (h, c). States beside h stand side by side in one tensor,
            [N, (states - 1) * H].
        saved: values per unit and step kept for the backward beside the states, K.
        parameters: vectors of one value per hidden unit beside the biases, P. They follow these in
            bias_hh, [(G + P) * H].
        stages: products of a step; by default one with all gates. That of the first reads h, that
            of a later one what the stage before gives it.
        kept: saved values that a later stage of the same step reads.
        uses_h: h enters the step beside its products too.
        reads_state, reads_new_state: states that the backward reads, before and after the step.
        separate: gates whose gradient on the recurrent side is not that of the input side.
        operand: of a cell with two stages: what the product of the second read, from the saved
            values and h before the step, each [rows, H]. If it needs more, it is saved.
        runs: of every stage its gates, in the order of their rows; follows from the others.
    """

    name: str
    gates: int
    states: int
    saved: int = 0
    parameters: int = 0
    stages: tuple[Stage, ...] = ()
    kept: tuple[int, ...] = ()
    uses_h: bool = True
    reads_state: tuple[int, ...] = ()
    reads_new_state: tuple[int, ...] = ()
    separate: tuple[int, ...] = ()
    operand: Callable[[Sequence[Tensor], Tensor], Tensor] | None = None
    runs: tuple[tuple[Run, ...], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        if not self.stages:
            all_of = (tuple(range(n)) for n in (self.gates, self.saved, self.parameters))
            stage = Stage(0, self.gates, *all_of)
            object.__setattr__(self, "stages", (stage,))
        object.__setattr__(self, "runs", tuple(map(self._runs, self.stages)))

    def _runs(self, stage: Stage) -> tuple[Run, ...]:
        gates = range(stage.first_gate, stage.first_gate + stage.gates)
        found = []
        for separate, group in groupby(gates, self.separate.__contains__):
            first, *others = group
            column = self.separate.index(first) if separate else first
            found.append(Run(separate, column, first, 1 + len(others)))
        return tuple(found)

    @property
    def pointwise(self) -> bool:
        """One step needs gates and state alone, so it is an op of its own."""
        return len(self.stages) == 1 and self.parameters == 0

    @property
    def separate_columns(self) -> int:
        """Columns / H of grad_gates_h: gradients of the separate gates, then of the parameters."""
        return len(self.separate) + self.parameters


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec(
            "lstm",
            gates=4,
            states=2,
            saved=4,
            uses_h=False,
            reads_state=(1,),
            reads_new_state=(1,),
        ),
        CellSpec("gru", gates=3, states=1, saved=4, reads_state=(0,), separate=(2,)),
        CellSpec(
            "gru_reset_before",
            gates=3,
            states=1,
            saved=3,
            stages=(Stage(0, 2, grads=(0,), saves=(0, 1)), Stage(2, 1, grads=(1, 2), saves=(2,))),
            kept=(1,),
            reads_state=(0,),
            operand=lambda saved, h: saved[0] * h,
        ),
        CellSpec("rnn_tanh", gates=1, states=1, uses_h=False, reads_new_state=(0,)),
        CellSpec("rnn_relu", gates=1, states=1, uses_h=False, reads_new_state=(0,)),
    )
}


def compiled(cell: dict) -> CellSpec:
    """A cell as the extension declares it: its attributes, a stage as a tuple."""
    return CellSpec(**cell | {"stages": tuple(Stage(*stage) for stage in cell["stages"])})


def add_compiled(declared: Sequence[dict]) -> None:
    """Add cells that the extension was compiled with beside the package's own."""
    for cell in map(compiled, declared):
        CELLS.setdefault(cell.name, cell)
