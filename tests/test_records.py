"""Every comparison of the parity tests leaves a record of what was measured."""

import json

import pytest
import torch
from parity import Case, check_cell, check_sequence
from tolerance import FLOOR, assert_parity, collected

from seqkernels.ops import get


@pytest.fixture
def records(tmp_path, monkeypatch):
    path = tmp_path / "records"
    monkeypatch.setenv("SEQKERNELS_RECORDS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_of_a_sequence(records):
    pair = get("gru_sequence"), get("gru_sequence_backward")
    check_sequence("gru", Case(4, 3, 5, reverse=True), torch.bfloat16, *pair)
    found = {record["quantity"]: record for record in records()}
    forward, backward = {"output", "h_n"}, {"grad_gates_x", "grad_weight_hh", "grad_bias_hh"}
    assert found.keys() == forward | backward | {"grad_h_0"}
    for name, record in found.items():
        assert record["kernel"] == "gru_sequence" and record["cell"] == "gru"
        assert record["dtype"] == "bfloat16" and record["tf32"] is False
        assert record["direction"] == ("forward" if name in forward else "backward")
        assert record["case"]["hidden_size"] == 5 and record["case"]["reverse"] is True
        assert 0 < record["error"] <= record["limit"]
        assert record["limit"] == FLOOR[torch.bfloat16] + 2 * record["torch_error"]
        assert record["test"].endswith("test_records.py::test_of_a_sequence")


def test_of_a_cell(records):
    check_cell("lstm", 3, 5, torch.float32, get("lstm_cell"), get("lstm_cell_backward"))
    found = {record["quantity"]: record for record in records()}
    assert {"new_h", "new_c", "grad_gates_x", "grad_c"} <= found.keys()
    assert {r["kernel"] for r in found.values()} == {"lstm_cell"}
    assert found["grad_c"]["direction"] == "backward"


def test_of_a_block(records):
    """Collected by the innermost block, and written to the file as well."""
    one = torch.ones(3, dtype=torch.float64)
    with collected() as outer:
        assert_parity(one, None, one, "x")
        with collected() as inner, pytest.raises(AssertionError):
            assert_parity(one + 1, None, one, "y")
    assert_parity(one, None, one, "z")
    assert [r["quantity"] for r in outer] == ["x"]
    assert [(r["quantity"], r["error"]) for r in inner] == [("y", 1.0)]
    assert [r["quantity"] for r in records()] == ["x", "y", "z"]


def test_of_what_fails(records):
    """The record is there before the assertion; JSON has no NaN."""
    right = torch.ones(3, dtype=torch.float64)
    for wrong in (torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, float("nan"), 1.0])):
        with pytest.raises(AssertionError):
            assert_parity(wrong, torch.ones(3), right, "x")
    first, second = records()
    assert first["error"] > first["limit"] and second["error"] is None
