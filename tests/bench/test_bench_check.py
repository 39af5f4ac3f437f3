"""The gate: the oracle is the package's reference, and a wrong contestant gets no time."""

from dataclasses import replace

import pytest
import torch

from bench import check, runner
from bench.cases import Case
from bench.contestants import BASELINE, Contestant, Prepared, Refused
from bench.timing import QUICK, CpuTimer
from bench.workload import Workload, results

CPU = torch.device("cpu")
SMALL = Case("lstm", 5, 3, 4, 6)
CASES = [
    SMALL,
    replace(SMALL, cell="gru", num_layers=2, bidirectional=True),
    replace(SMALL, cell="rnn_relu", rows="packed"),
    replace(SMALL, rows="lengths"),
    replace(SMALL, proj_size=2),
    replace(SMALL, cell="gru", kind="cell"),
    replace(SMALL, kind="decode", num_layers=2, vocabulary=7, hidden_size=4, modes=("inference",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_torch_agrees_with_the_oracle_in_float64(case):
    for mode in case.modes:
        reference = check.expected(case, CPU, mode)
        work = Workload(case, CPU, torch.float64)
        model = work.model(torch.nn)
        names = [name for name, _ in model.named_parameters()]
        found = results(work.call(model, mode)(), names)
        assert found.keys() == reference.keys()
        assert max(check.errors(found, reference).values()) < 1e-12
        if mode == "training":
            assert {"grad_input", *(f"grad_{name}" for name in names)} <= found.keys()


def test_the_rule_is_that_of_the_tests():
    floor = check.tolerance.FLOOR[torch.float32]
    theirs = {"output": 1e-7, "h_n": 0.0}
    assert check.verdict({"output": 2e-7, "h_n": floor}, theirs, torch.float32) is None
    wrong = check.verdict({"output": 1e-7, "h_n": 1.1 * floor}, theirs, torch.float32)
    assert wrong.startswith("wrong h_n: error 1.32e-07")
    assert check.verdict({"output": 1e-7}, theirs, torch.float32) == "no h_n to check"
    nan = {"output": float("nan"), "h_n": 0.0}
    assert check.verdict(nan, theirs, torch.float32).startswith("wrong output")


def test_results_that_are_not_finite_are_infinitely_wrong():
    assert check.errors({"x": torch.tensor([1.0, float("inf")])}, {"x": torch.ones(2)}) == {
        "x": float("inf")
    }


def test_a_baseline_that_computes_another_model_is_not_a_baseline():
    assert check.oracle_verdict({"output": 1e-6}, torch.float32) is None
    assert "disagree: output" in check.oracle_verdict({"output": 0.5}, torch.float32)


def test_long_cases_are_checked_on_fewer_steps():
    assert check.checked_length(SMALL) == 5
    huge = Case("lstm", 4096, 512, 4096, 4096, num_layers=4)
    assert 1 <= check.checked_length(huge) < 4096


def _torch(work, mode):
    model = work.model(torch.nn)
    return Prepared(work.call(model, mode), tuple(n for n, _ in model.named_parameters()))


def _slightly_wrong(work, mode):
    prepared = _torch(work, mode)

    def call():
        output, state, *rest = prepared.call()
        return (output * (1 + 1e-5), state, *rest)

    return Prepared(call, prepared.parameters)


def _refuses(work, mode):
    raise Refused("it has no such cell")


def _breaks(work, mode):
    return Prepared(lambda: torch.zeros(2) @ torch.zeros(3))


def test_only_right_results_are_timed(monkeypatch):
    entries = [
        Contestant(BASELINE, _torch),
        Contestant("same", _torch),
        Contestant("wrong", _slightly_wrong),
        Contestant("refuses", _refuses, label="patched"),
        Contestant("breaks", _breaks),
    ]
    monkeypatch.setattr(runner, "contestants", lambda case, device, extra, backends: entries)
    rows, times = runner.measure(SMALL, "training", CPU, CpuTimer(), QUICK, with_memory=False)
    found = {row["name"]: row for row in rows}
    assert sorted(times) == ["same", BASELINE]
    assert found["same"]["time_s"]["median"] > 0 and found["same"]["first_call_s"] > 0
    assert found["wrong"]["refused"].startswith("wrong output: error ")
    assert found["wrong"]["error"]["output"] == pytest.approx(1e-5, rel=0.05)
    assert found["refuses"]["refused"] == "it has no such cell"
    assert found["refuses"]["label"] == "patched"
    assert found["breaks"]["refused"].startswith("RuntimeError: ")
    assert {found[name]["time_s"] for name in ("wrong", "refuses", "breaks")} == {None}
