"""The emulator runs right kernels right, on every schedule, and finds every planted bug."""

import emulator
import numpy as np
import pytest
import torch
from emulator import SCHEDULES, build, poisoned
from recording import recorded, replay

pytestmark = pytest.mark.needs("headers")

KERNELS = "tests/emulator/kernels"


def build_kernels(sanitizer=None):
    names = ("lstm_persistent", "exchange", "warp_bugs")
    return build([f"{KERNELS}/{name}.cu" for name in names], sanitizer=sanitizer)


@pytest.fixture(scope="module")
def kernels():
    return build_kernels()


@pytest.fixture(scope="module")
def address():
    return build_kernels("address")


@pytest.fixture(scope="module")
def thread():
    return build_kernels("thread")


def run_lstm(library, T, N, H, schedule, bug=0):
    """Report of one run, and the largest error of h and c; a NaN counts as infinite."""
    gates_x, c = torch.randn(T, N, 4 * H), torch.randn(N, H)
    weight_hh = (torch.randn(4 * H, H) / H**0.5).bfloat16()
    h = poisoned(T + 1, N, H, dtype=torch.bfloat16)
    h[0] = torch.randn(N, H)
    state, cell, expected = h[0].float(), c.clone(), []
    for t in range(T):
        i, f, g, o = (gates_x[t] + state @ weight_hh.float().T).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = (o.sigmoid() * cell.tanh()).bfloat16().float()
        expected.append(state)
    counter = torch.zeros(1, dtype=torch.int32)
    report = library.run(
        "test_lstm_persistent",
        gates_x,
        weight_hh,
        h,
        c,
        counter,
        T,
        N,
        H,
        bug,
        None,
        schedule=schedule,
    )
    differences = torch.cat(
        [(h[1:].float() - torch.stack(expected)).flatten(), (c - cell).flatten()]
    )
    return report, differences.abs().nan_to_num(float("inf")).max().item()


# Rounding of h to bfloat16, carried over a few steps.
LSTM_ERROR = 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(1, 1, 16), (5, 5, 64), (20, 16, 128)], ids=str)
def test_persistent_lstm(kernels, shape, schedule):
    report, error = run_lstm(kernels, *shape, schedule)
    report.check()
    assert error < LSTM_ERROR


def test_reruns_are_equal(kernels):
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(run_lstm(kernels, 4, 3, 32, "shuffled"))
    assert runs[0][1] == runs[1][1] and runs[0][0].switches == runs[1][0].switches


# Bug, the schedules that find it, and words of the report (none: found by wrong numbers).
LSTM_BUGS = [
    (1, SCHEDULES, "cp.async"),
    (2, SCHEDULES, ""),
    (3, SCHEDULES, "memory fault"),
    (4, SCHEDULES, "threads in wait_at_least at lstm_persistent.cu"),
    (5, ("shuffled", "depth first"), ""),
    (6, SCHEDULES, ""),
    (7, SCHEDULES, "threads of one block meet at different barriers"),
    (8, SCHEDULES, "shared memory"),
]


@pytest.mark.parametrize(("bug", "finders", "words"), LSTM_BUGS, ids=lambda v: str(v)[:3])
def test_planted_lstm_bug(kernels, bug, finders, words):
    for schedule in SCHEDULES:
        report, error = run_lstm(kernels, 5, 5, 64, schedule, bug)
        found = not report.clean or error > LSTM_ERROR
        assert found == (schedule in finders), (schedule, report, error)
        if words:
            assert words in report.error
            assert "block" in report.error and "thread" in report.error


def run_exchange(library, kind, bug, schedule="round robin", blocks=8, T=5):
    """Report of one run, and whether its numbers are right."""
    x = torch.arange(blocks, dtype=torch.int32) * 5 % 97
    values = x.tolist()
    for _ in range(T):
        values = [(own + sum(values)) % 97 for own in range(blocks)]
    arguments = {
        "cluster": (),
        "counter": (poisoned(2, blocks, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)),
        "flagged": (torch.zeros(2, blocks, dtype=torch.int64),),
    }[kind]
    report = library.run(
        f"test_exchange_{kind}", x, *arguments, blocks, T, bug, None, schedule=schedule
    )
    return report, x.tolist() == values


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["cluster", "counter", "flagged"])
def test_exchange(kernels, kind, schedule):
    report, right = run_exchange(kernels, kind, 0, schedule)
    report.check()
    assert right


EXCHANGE_BUGS = [
    ("cluster", 1, SCHEDULES, ""),
    ("cluster", 2, SCHEDULES, ""),
    ("cluster", 3, SCHEDULES, "deadlock: 256 threads in mbarrier_wait at exchange.cu"),
    ("cluster", 4, SCHEDULES, ""),
    ("cluster", 5, SCHEDULES, "exited"),
    ("cluster", 6, SCHEDULES, "wait with the cluster form"),
    ("cluster", 7, SCHEDULES, "before mbarrier_init"),
    ("cluster", 8, SCHEDULES, ""),
    ("counter", 1, SCHEDULES, ""),
    ("counter", 2, ("shuffled",), ""),
    ("counter", 3, SCHEDULES, "deadlock"),
    ("flagged", 3, SCHEDULES, "livelock"),
    ("flagged", 4, SCHEDULES, ""),
    ("flagged", 5, SCHEDULES, "never calls spin_yield"),
]


@pytest.mark.parametrize(
    ("kind", "bug", "finders", "words"), EXCHANGE_BUGS, ids=lambda v: str(v)[:7]
)
def test_planted_exchange_bug(kernels, kind, bug, finders, words):
    for schedule in SCHEDULES:
        report, right = run_exchange(kernels, kind, bug, schedule)
        assert (not report.clean or not right) == (schedule in finders), (schedule, report)
        assert words in report.error


WARP_BUGS = {
    1: "the calling lane is not in its mask",
    2: "which has exited or is not in the mask",
    3: "meet at different places",
    4: "__shfl_xor_sync at warp_bugs.cu",
    5: "meet at different places",
    7: "named_barrier_sync: ",
    8: "ldmatrix",
    9: "not aligned",
    10: "written before its wait",
    11: "exits with cp.async",
}


@pytest.mark.parametrize("bug", WARP_BUGS)
def test_planted_warp_bug(kernels, bug):
    for schedule in SCHEDULES:
        report = kernels.run("test_warp_bugs", torch.randn(64), bug, None, schedule=schedule)
        assert WARP_BUGS[bug] in report.error, (schedule, report)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_partial_mask(kernels, schedule):
    x = torch.randn(64)
    expected = x.clone()
    kernels.run("test_warp_bugs", x, 0, None, schedule=schedule).check()
    assert torch.equal(x, expected)


@pytest.mark.exhaustive
def test_address_sanitizer(address):
    report, error = run_lstm(address, 3, 5, 64, "round robin")
    report.check()
    assert error < LSTM_ERROR
    for kind in ("cluster", "counter", "flagged"):
        report, right = run_exchange(address, kind, 0)
        report.check()
        assert right


@pytest.mark.exhaustive
@pytest.mark.parametrize(("bug", "line"), [(3, "lstm_persistent.cu"), (8, "lstm_persistent.cu")])
def test_address_sanitizer_finds(address, bug, line):
    report, _ = run_lstm(address, 3, 5, 64, "round robin", bug)
    assert "heap-buffer-overflow" in report.sanitizer and line in report.sanitizer


@pytest.mark.exhaustive
def test_race_checker(thread):
    report, error = run_lstm(thread, 3, 5, 64, "round robin")
    report.check()
    assert error < LSTM_ERROR
    for kind in ("cluster", "counter", "flagged"):
        report, right = run_exchange(thread, kind, 0)
        report.check()
        assert right


@pytest.mark.exhaustive
@pytest.mark.parametrize("bug", [2, 5])
def test_race_checker_finds_in_lstm(thread, bug):
    report, _ = run_lstm(thread, 3, 5, 64, "round robin", bug)
    assert "data race" in report.sanitizer and "lstm_persistent.cu" in report.sanitizer


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "bug"), [("cluster", 1), ("cluster", 4), ("counter", 1), ("counter", 2)]
)
def test_race_checker_finds_in_exchange(thread, kind, bug):
    report, _ = run_exchange(thread, kind, bug)
    assert "data race" in report.sanitizer and "exchange.cu" in report.sanitizer
    assert "block 0 thread" in report.sanitizer


@pytest.mark.exhaustive
def test_race_checker_finds_missing_syncwarp(thread):
    report = thread.run("test_warp_bugs", torch.randn(64), 6, None)
    assert "data race" in report.sanitizer and "warp_bugs.cu" in report.sanitizer


@pytest.mark.exhaustive
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_replay(kernels, sanitizer, request):
    watched = request.getfixturevalue(sanitizer)
    for bug in (0, 5):
        torch.manual_seed(1)
        with recorded(kernels) as launches:
            run_lstm(kernels, 3, 5, 64, "round robin", bug)
        assert len(launches) == 1 and len(launches[0].buffers) == 5
        report = replay(watched, launches[0])
        assert report.code == 0 and not report.error
        assert ("data race" in report.sanitizer) == (sanitizer == "thread" and bug == 5)
        # h has gone from all NaN to none.
        h = launches[0].buffers[2].view(np.uint16)
        assert (h != 0xFFFF).all()


def test_refused_launches(kernels):
    # 17 blocks in a cluster; a cooperative grid that does not fit at once. Nothing runs.
    x = torch.zeros(5000, dtype=torch.int32)
    report = kernels.run("test_exchange_cluster", x, 17, 1, 0, None)
    assert report.code == 9 and not report.error and report.switches == 0
    report = kernels.run(
        "test_exchange_flagged", x, torch.zeros(10000, dtype=torch.int64), 5000, 1, 0, None
    )
    assert report.code == 720 and not report.error and report.switches == 0


def test_arguments():
    with pytest.raises(ValueError, match="contiguous"):
        emulator.memory_of(torch.zeros(4, 4).T)
    x = torch.zeros(8)
    with pytest.raises(ValueError, match="overlap"):
        emulator._Pairs([x[:5], x[3:]])


def test_example_of_the_page(tmp_path):
    page = (emulator.ROOT / "docs" / "emulator.md").read_text()
    kernel = page.split("```cpp\n")[1].split("```")[0]
    test = page.split("```python\n")[1].split("```")[0]
    source = tmp_path / "block_sum.cu"
    source.write_text(kernel)
    exec(test.replace("path/to/block_sum.cu", str(source)), {})
    source.write_text(kernel.replace("  sk::cp_async_wait<0>();\n", ""))
    with pytest.raises(emulator.EmulatorError, match="cp.async.*thread.*block_sum.cu"):
        exec(test.replace("path/to/block_sum.cu", str(source)), {})
