"""What the CPU sequence ops refuse, with the offending sizes in the message."""

import re

import pytest
import torch
from cpu_cases import Case, make_inputs, op

T, N, H = 4, 3, 5


def call(name="lstm", case=None, **changes):
    inputs = make_inputs(name, case or Case(T, N, H), torch.float32) | changes
    return op(f"{name}_sequence")(*inputs.values(), False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates_x": torch.zeros(T, N, 19)}, "expected gates_x of size [4, 3, 20], got [4, 3, 19]"),
        ({"gates_x": torch.zeros(T, 2, 20)}, "expected gates_x of size [4, 3, 20], got [4, 2, 20]"),
        ({"gates_x": torch.zeros(T, 20)}, "expected gates_x of 3 dimensions, got [4, 20]"),
        ({"weight_hh": torch.zeros(20, 6)}, "expected weight_hh of size [20, 5], got [20, 6]"),
        ({"bias_hh": torch.zeros(21)}, "expected bias_hh of size [20], got [21]"),
        ({"h_0": torch.zeros(1, N, H)}, "expected h_0 of size [N, H], got [1, 3, 5]"),
        ({"c_0": torch.zeros(2, H)}, "expected c_0 of size [3, 5], got [2, 5]"),
        ({"c_0": None}, "lstm_sequence: c_0 is missing"),
        ({"lengths": torch.tensor([1, 2])}, "expected lengths of size [3], got [2]"),
        ({"lengths": torch.tensor([1, 5, 2])}, "between 0 and 4 steps, got 5 for row 1"),
        ({"lengths": torch.tensor([1, 2, -1])}, "between 0 and 4 steps, got -1 for row 2"),
        ({"lengths": torch.tensor([1, 2, 3]).int()}, "lengths must be int64"),
        ({"reset": torch.zeros(T, N)}, "reset must be bool"),
        ({"reset": torch.zeros(T, 2).bool()}, "expected reset of size [4, 3], got [4, 2]"),
        ({"weight_hh": torch.zeros(20, H).double()}, "weight_hh has another dtype than the other"),
        (
            {"gates_x": torch.zeros(T, N, 20).int()},
            "expected float64, float32, float16",
        ),
    ],
)
def test_padded(changes, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": torch.tensor([3, 3])}, "batch_sizes add up to 6 rows, gates_x has 7"),
        ({"batch_sizes": torch.tensor([3, 1, 3])}, "must be positive and fall, got 3 after 1"),
        ({"batch_sizes": torch.tensor([3, 3, 0, 1])}, "must be positive and fall, got 0 after 3"),
        ({"batch_sizes": torch.tensor([2, 2, 2, 1])}, "begins with 2 rows, h_0 has 3"),
        ({"batch_sizes": torch.tensor([[3, 3, 1]])}, "an int64 vector on the CPU, got [1, 3]"),
        ({"lengths": torch.tensor([3, 2, 2])}, "cannot be given together with lengths or reset"),
        ({"gates_x": torch.zeros(7, 1, 20)}, "expected packed gates_x of 2 dimensions"),
    ],
)
def test_packed(changes, message):
    packed = {"gates_x": torch.zeros(7, 20), "batch_sizes": torch.tensor([3, 3, 1])} | changes
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(**packed)


def test_a_cell_without_c_refuses_one():
    with pytest.raises(RuntimeError, match="gru_sequence: this cell has no c_0"):
        call("gru", c_0=torch.zeros(N, H))


@pytest.mark.parametrize("argument", ["grad_output", "output", "c_sequence", "saved"])
def test_backward_checks_what_the_forward_gave(argument):
    inputs = make_inputs("lstm", Case(T, N, H), torch.float32)
    output, h_n, _, c_sequence, saved = call()
    arguments = {
        "grad_output": output,
        "grad_h_n": h_n,
        "grad_c_n": None,
        "grad_c_sequence": None,
        "weight_hh": inputs["weight_hh"],
        "bias_hh": inputs["bias_hh"],
        "h_0": inputs["h_0"],
        "c_0": inputs["c_0"],
        "output": output,
        "c_sequence": c_sequence,
        "saved": saved,
    }
    arguments[argument] = arguments[argument][:3]
    layout = (None, None, None, False)
    with pytest.raises(RuntimeError, match=r"lstm_sequence_backward: expected .* got \["):
        op("lstm_sequence_backward")(*arguments.values(), *layout)
