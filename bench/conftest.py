"""The suites under pytest-benchmark: `pytest bench --suite cpu`.

pytest-benchmark times one function after the other, which on a machine whose clock or neighbours
change favours whoever ran in the quieter minute. So all contestants of a case are timed in turns
first, by the same code as `python -m bench run`, and the samples are handed to pytest-benchmark,
whose tables, histograms, JSON and comparisons then work on them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest  # noqa: E402
import torch  # noqa: E402

from bench.cases import SUITES, Case  # noqa: E402
from bench.contestants import contestants  # noqa: E402
from bench.runner import measure  # noqa: E402
from bench.timing import FULL, QUICK, Times, precision, timer_for  # noqa: E402


class Recorded:
    """Samples taken earlier, as a function to time and the clock to time it with."""

    def __init__(self) -> None:
        self.now, self.samples = 0.0, iter(())

    def clock(self) -> float:
        """Seconds on this object's own clock."""
        return self.now

    def call(self) -> None:
        """Take as long as the next sample took."""
        self.now += next(self.samples)


def pytest_addoption(parser):
    """Which suites to run and how."""
    group = parser.getgroup("seqkernels benchmarks")
    group.addoption("--suite", action="append", choices=SUITES, help="default: cpu")
    group.addoption("--only", default="", help="cases whose id contains this")
    group.addoption(
        "--with", dest="extra", help="further contestants, by commas, instead of the suite's own"
    )
    group.addoption("--quick", action="store_true", help="few samples")
    group.addoption("--threads", type=int, help="CPU threads")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_configure(config):
    """Set the number of threads once for all cases."""
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc):
    """One test for every case, mode and contestant of the chosen suites."""
    if "contestant" not in metafunc.fixturenames:
        return
    config, device = metafunc.config, _device()
    parameters = []
    chosen = config.getoption("extra")
    for suite in (SUITES[name] for name in config.getoption("--suite") or ["cpu"]):
        extra = suite.extra_on(device.type)
        if chosen is not None:
            extra = tuple(filter(None, chosen.split(",")))
        for case in suite.on(device.type):
            if config.getoption("--only") not in case.id:
                continue
            for mode in case.modes:
                for contestant in contestants(case, device, extra):
                    recorded = Recorded()
                    mark = pytest.mark.benchmark(
                        group=f"{suite.name}: {case.id} {mode}", timer=recorded.clock
                    )
                    parameters.append(
                        pytest.param(
                            (case, mode, extra),
                            contestant.name,
                            recorded,
                            id=f"{case.id}-{mode}-{contestant.name}",
                            marks=mark,
                        )
                    )
    metafunc.parametrize(("measurement", "contestant", "recorded"), parameters)


@pytest.fixture(scope="session")
def measured(request):
    """A function that measures a case in a mode once, whoever asks for its contestants."""
    device = _device()
    effort = QUICK if request.config.getoption("--quick") else FULL
    known: dict[tuple, tuple[dict[str, dict], dict[str, Times]]] = {}

    def once(case: Case, mode: str, extra: tuple[str, ...]):
        key = (case, mode, extra)
        if key not in known:
            known.clear()
            with precision(case.dtype, device):
                rows, times = measure(
                    case, mode, device, timer_for(device), effort, extra=extra, with_memory=False
                )
            known[key] = {row["name"]: row for row in rows}, times
        return known[key]

    return once
