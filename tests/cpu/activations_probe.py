"""Run as a program: tanh and sigmoid of the CPU kernels, in units in the last place.

Prints the instruction set in use.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import activations
import torch
from cpu_cases import op
from torch import Tensor

BOUNDS = {
    torch.float32: {"sigmoid": 2.5, "tanh": 2.1},
    torch.float64: {"sigmoid": 2.5, "tanh": 1.5},
}


def saved_gates(x: Tensor) -> dict[str, Tensor]:
    """What an LSTM cell keeps of its gates: i, f, g, o."""
    gates, state = x.repeat(4).unsqueeze(0), torch.zeros(1, len(x), dtype=x.dtype)
    # Adding -0 changes nothing, not even the sign of zero.
    _, _, saved = op("lstm_cell")(gates, torch.full_like(gates, -0.0), state, state, True)
    i, f, g, o = saved.view(4, -1)
    assert torch.equal(i.nan_to_num(), f.nan_to_num())
    assert torch.equal(i.nan_to_num(), o.nan_to_num())
    return {"sigmoid": i, "tanh": g}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype, dense in ((torch.float32, 200_001), (torch.float64, 10_001)):
        activations.check(saved_gates, dtype, BOUNDS[dtype], dense)
    print(op("cpu_isa")())
