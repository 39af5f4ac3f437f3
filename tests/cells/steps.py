"""Cells that the package does not have: their specifications and reference steps.

Each is one file of C++ here, one pair of Triton functions, one step below.
"""

from contextlib import contextmanager

import torch

from seqkernels import reference
from seqkernels.cells import CELLS, CellSpec, Stage


def leaky_rnn_step(gates_x, gates_h, state, parameters):
    """h' = h + a (tanh(x + U h) - h) with a trained rate a of each unit."""
    (h,), (rate,) = state, parameters
    return (h + rate * (torch.tanh(gates_x + gates_h) - h),)


def peephole_lstm_step(gates_x, gates_h, state, parameters):
    """CIFG with peepholes (Greff et al. 2017); gates f, g, o."""
    _, c = state
    f, g, o = (gates_x + gates_h).chunk(3, dim=-1)
    f, g = torch.sigmoid(f + parameters[0] * c), torch.tanh(g)
    c = g + f * (c - g)
    return torch.sigmoid(o + parameters[1] * c) * torch.tanh(c), c


def scaled_gru_step(gates_x, weight_hh, bias_hh, state):
    """A GRU with the reset gate before the product; r * h is scaled, and n sees h; gates r, z, n.

    The factors of both follow the bias.
    """
    (h,) = state
    size = h.shape[-1]
    bias_rz, bias_n, scale, skip = bias_hh.split((2 * size, size, size, size))
    weight_rz, weight_n = weight_hh.split((2 * size, size))
    x_rz, x_n = gates_x.split((2 * size, size), dim=-1)
    r, z = torch.sigmoid(x_rz + reference.F.linear(h, weight_rz, bias_rz)).chunk(2, dim=-1)
    n = torch.tanh(x_n + reference.F.linear(scale * r * h, weight_n, bias_n) + skip * h)
    return (n + z * (h - n),)


def slstm_step(gates_x, gates_h, state):
    """The sLSTM (Beck et al. 2024, equations 8 to 17), forget gate exponential; i, f, z, o."""
    _, c, n, m = state
    log_i, log_f, z, o = (gates_x + gates_h).chunk(4, dim=-1)
    log_f = log_f + m
    m = torch.maximum(log_i, log_f)
    i, f = torch.exp(log_i - m), torch.exp(log_f - m)
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    return torch.sigmoid(o) * (c / n), c, n, m


STEPS = {"leaky_rnn": leaky_rnn_step, "peephole_lstm": peephole_lstm_step, "slstm": slstm_step}
WHOLE_STEPS = {"scaled_gru": scaled_gru_step}
SPECS = {
    spec.name: spec
    for spec in (
        CellSpec("leaky_rnn", gates=1, states=1, saved=1, parameters=1, reads_state=(0,)),
        CellSpec(
            "peephole_lstm",
            gates=3,
            states=2,
            saved=3,
            parameters=2,
            uses_h=False,
            reads_state=(1,),
            reads_new_state=(1,),
        ),
        CellSpec(
            "scaled_gru",
            gates=3,
            states=1,
            saved=4,
            parameters=2,
            stages=(
                Stage(0, 2, grads=(0,), saves=(0, 1, 3), parameters=(0,)),
                Stage(2, 1, grads=(1, 2), saves=(2,), parameters=(1,)),
            ),
            kept=(1,),
            reads_state=(0,),
            operand=lambda saved, h: saved[3],
        ),
        CellSpec(
            "slstm",
            gates=4,
            states=4,
            saved=5,
            uses_h=False,
            reads_state=(1, 2),
            reads_new_state=(1, 2),
        ),
    )
}


@contextmanager
def added():
    """While it lasts, the package's tables hold these cells."""
    CELLS.update(SPECS)
    reference.STEPS.update(STEPS)
    reference.WHOLE_STEPS.update(WHOLE_STEPS)
    try:
        yield
    finally:
        for name in SPECS:
            del CELLS[name]
            reference.STEPS.pop(name, None)
            reference.WHOLE_STEPS.pop(name, None)
