"""Memory, costs, further contestants and the errors of the command line."""

import math
import time
from dataclasses import replace

import pytest
import torch

from bench import compiled, memory, results, roofline, runner
from bench.__main__ import main
from bench.cases import MODES, SUITES, Case, Suite
from bench.contestants import BASELINE, Refused
from bench.timing import QUICK
from bench.workload import Workload

CPU = torch.device("cpu")
TINY = Case("gru", 4, 3, 5, 6)


def test_errors_of_the_command_line(capsys):
    assert main(["run", "nothing", "--device", "cpu"]) == 2
    assert "unknown suite 'nothing'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["run", "cpu", "--device", "cuda"]) == 2
        assert "there is no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("run cpu --with compiled", "unknown contestant 'compiled'; further ones: compile, graph"),
        ("run cpu cells --only H7777", "no case there has 'H7777' in its id"),
        ("model --layer gru --dtype tf32 SIZES", "a CPU has no TF32 products"),
        ("run cpu --rounds 0", "--rounds: 0 is below 1"),
        ("run cpu --threads -2", "--threads: -2 is below 1"),
        ("model --layer gru SIZES --batch 0", "--batch: 0 is below 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, line, reason):
    sizes = "--input-size 4 --hidden-size 4 --length 2 --batch 1"
    arguments = [*line.replace("SIZES", sizes).split(), "--device", "cpu"]
    try:
        assert main(arguments) == 2
    except SystemExit as stopped:  # of argparse
        assert stopped.code == 2
    assert reason in capsys.readouterr().err


def test_list_names_every_suite(capsys):
    assert main(["list", "--cases"]) == 0
    out = capsys.readouterr().out
    for suite in SUITES.values():
        assert suite.name in out and suite.why in out


@pytest.mark.exhaustive
def test_peak_memory_is_about_what_the_backward_keeps():
    case = Case("lstm", 64, 64, 128, 256)
    found = memory.peak(case, "training", BASELINE, CPU)
    # The output, its gradient's products and at least the four gates of every step are kept.
    kept = 64 * 64 * 256 * 4 * 5
    assert kept < found < 10 * kept
    assert memory.peak(case, "inference", BASELINE, CPU) < found


def test_cost_counts_products():
    case = Case("lstm", length=10, batch=4, input_size=8, hidden_size=16)
    cost = roofline.cost(case, "inference")
    assert cost.flops == 10 * 4 * 2 * 64 * (8 + 16)
    assert roofline.cost(case, "training").flops == 3 * cost.flops
    assert cost.weight_bytes == 4 * (64 * (8 + 16) + 2 * 64)
    assert cost.exchange_bytes == 4 * 4 * 16 and cost.steps == 10
    deep = replace(case, num_layers=2, bidirectional=True)
    assert roofline.cost(deep, "inference").flops == 2 * 40 * 2 * 64 * ((8 + 16) + (32 + 16))
    assert roofline.cost(deep, "inference").steps == 11
    packed = replace(case, rows="packed")
    assert roofline.cost(packed, "inference").flops == sum(packed.lengths()) * 2 * 64 * 24


def test_traffic_counts_every_step():
    case = Case("lstm", length=10, batch=4, input_size=8, hidden_size=16)
    weights, states = 4 * 64 * 16, 4 * 4 * 16
    assert roofline.traffic(case, "inference") == (10 * weights, 10 * states)
    assert roofline.traffic(case, "training") == (20 * weights, 10 * states * 5)
    deep = replace(case, num_layers=2, bidirectional=True)
    assert roofline.traffic(deep, "inference") == (40 * weights, 40 * states)
    packed = replace(case, rows="packed")
    assert roofline.traffic(packed, "inference")[1] == sum(packed.lengths()) * 4 * 16


def test_floor_of_a_gpu_is_its_exchanges():
    rates = {"flops": {"float32": 1e18, "float16": 1e18}, "bytes": 1e18}
    case = Case("lstm", 1024, 16, 512, 512, dtype="float16")
    floor = roofline.floor_seconds(case, "inference", "cuda", rates)
    assert floor == pytest.approx(1024 * 0.4e-6, rel=0.01)
    # Weights beyond one cluster's shared memory are exchanged through L2.
    wide = replace(case, hidden_size=1024, input_size=1024)
    assert roofline.floor_seconds(wide, "inference", "cuda", rates) > 2 * floor
    assert roofline.floor_seconds(case, "training", "cuda", rates) > 1.9 * floor
    on_cpu = roofline.floor_seconds(case, "inference", "cpu", rates)
    assert on_cpu == roofline.cost(case, "inference").flops / 1e18


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("step", "changed"),
    [
        ("layer_step", {}),
        ("layer_step", {"num_layers": 2, "bidirectional": True}),
        ("layer_step", {"rows": "packed", "bidirectional": True}),
        ("layer_step", {"rows": "lengths", "cell": "lstm", "num_layers": 2}),
        ("cell_step", {"kind": "cell", "cell": "lstm"}),
        ("decode_step", {"kind": "decode", "vocabulary": 11, "num_layers": 2}),
    ],
)
def test_compiled_loop_is_a_contestant(monkeypatch, step, changed):
    # Compiling takes the better part of a minute; what it is given has to be right either way.
    given = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: given.append(step) or step)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    modes = ("inference",) if step == "decode_step" else MODES
    suite = Suite("tiny", "One compiled step.", (replace(TINY, modes=modes, **changed),))
    document = runner.run_suite(suite, CPU, QUICK, with_memory=False, extra=("compile",))
    for result in document["results"]:
        rows = {row["name"]: row for row in result["contestants"]}
        assert rows["torch.compile"]["time_s"], rows["torch.compile"]["refused"]
        assert rows["torch.compile"]["error"].keys() == rows[BASELINE]["error"].keys()
    assert given == [getattr(compiled, step)] * len(modes)


def test_a_compiled_loop_has_no_projection():
    case = Case("lstm", 4, 3, 5, 6, proj_size=2)
    with pytest.raises(Refused, match="no proj_size"):
        compiled.build(Workload(case, CPU), "inference")


@pytest.mark.exhaustive
def test_peers_say_why_they_cannot_run():
    suite = Suite("tiny", "Peers.", (replace(TINY, modes=("inference",)),))
    names = ("flashrnn", "haste", "torchrl")
    document = runner.run_suite(suite, CPU, QUICK, with_memory=False, extra=names)
    rows = {row["name"]: row for row in document["results"][0]["contestants"]}
    for name in ("FlashRNN", "Haste", "TorchRL"):
        assert "not installed" in rows[name]["refused"] or "GPU" in rows[name]["refused"]
    assert rows["FlashRNN"]["label"] == "patched"


@pytest.mark.exhaustive
def test_no_case_begins_after_the_deadline():
    cases = tuple(replace(TINY, batch=batch, modes=("inference",)) for batch in (1, 2))
    suite = Suite("tiny", "Two cases.", cases)
    for deadline, left_out in ((time.monotonic() - 1, [c.id for c in cases]), (math.inf, None)):
        document = runner.run_suite(suite, CPU, QUICK, with_memory=False, deadline=deadline)
        assert document["settings"].get("left_out") == left_out
        assert len(document["results"]) == (0 if left_out else 2)
        assert not list(results.problems(document))


@pytest.mark.exhaustive
def test_a_run_bounded_in_time_is_not_published(monkeypatch, tmp_path, capsys):
    """Not even one that leaves nothing out; a suite without time for a case leaves no file."""
    monkeypatch.setattr(results, "BENCH", tmp_path / "bench")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "published")
    assert main(["run", "small_hidden", "--device", "cpu", "--minutes", "0", "--rounds", "1"]) == 0
    assert "small_hidden: no time was left" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
