"""Every wrapper does in the emulator what golden_cases.py says, as tests/cuda asks of a GPU."""

import pytest
from emulator import SCHEDULES, build
from golden_cases import CASES, SOURCES

pytestmark = pytest.mark.needs("headers")


@pytest.fixture(scope="module")
def library():
    return build(SOURCES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_wrapper(library, case, schedule):
    def call(name, *arguments):
        library.run(name, *arguments, schedule=schedule).check()

    CASES[case](call)


@pytest.mark.exhaustive
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_wrappers_are_clean(sanitizer):
    library = build(SOURCES, sanitizer=sanitizer)

    def call(name, *arguments):
        library.run(name, *arguments).check()

    for case in ("mma", "cp_async", "named_barriers", "mbarrier", "cluster", "global"):
        CASES[case](call)


def test_resident_clusters(library):
    # 132 processors of 2048 threads and 228 KB: shared memory allows one block of 200 KB on each.
    for cluster, shared_bytes, expected in ((1, 200 << 10, 132), (4, 100 << 10, 66), (1, 0, 4224)):
        assert library.run("test_max_resident", cluster, shared_bytes).code == expected
    assert library.run("test_max_resident", 17, 0).code < 0
    assert library.run("test_max_resident", 1, 300 << 10).code < 0
