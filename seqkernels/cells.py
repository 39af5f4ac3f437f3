"""The table of cells: the Python twin of the list in csrc/cells.h."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CellSpec:
    """What the ops, layers and tests need to know of a cell.

    Attributes:
        name: prefix of its ops, `seqkernels::<name>_sequence`.
        gates: pre-activations per hidden unit, G; weights have G*H rows.
        states: 1 for h, 2 for (h, c).
        saved: values per unit and step kept for the backward beside the h and c sequences, K.
        separate_hidden: H-wide blocks of grad_gates_h that differ from grad_gates_x.
        pointwise: one step needs no product beyond weight_hh h, so a fused cell op exists.
    """

    name: str
    gates: int
    states: int
    saved: int
    separate_hidden: int = 0
    pointwise: bool = True


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("lstm", gates=4, states=2, saved=4),
        CellSpec("gru", gates=3, states=1, saved=4, separate_hidden=1),
        CellSpec("gru_reset_before", gates=3, states=1, saved=3, pointwise=False),
        CellSpec("rnn_tanh", gates=1, states=1, saved=0),
        CellSpec("rnn_relu", gates=1, states=1, saved=0),
    )
}
