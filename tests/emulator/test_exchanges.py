"""The exchange microbenchmarks pass on what they should, and notice where they do not."""

import shutil

import pytest
import torch
from emulated_machine import EmulatedMachine
from emulator import ROOT, SCHEDULES, build, poisoned

from bench.gpu import micro

pytestmark = [pytest.mark.needs("headers"), pytest.mark.exhaustive]

SOURCE = ROOT / "bench" / "gpu" / "micro.cu"
KINDS = [(t, p) for t in micro.TRANSPORTS for p in micro.PATTERNS]
kinds = pytest.mark.parametrize(("transport", "pattern"), KINDS)


@pytest.fixture(scope="module")
def library():
    return build([SOURCE])


def exchanged(library, transport, pattern, size=256, groups=2, rounds=5, **schedule):
    """Report of a launch, and how many comparisons failed; all that arrives is compared."""
    blocks = 4 if micro.TRANSPORTS[transport] else 3
    kind = list(micro.TRANSPORTS).index(transport), micro.PATTERNS.index(pattern)
    facts = poisoned(2, dtype=torch.int64)
    library.run("micro_facts", *kind, blocks, size, facts).check()
    resident, memory_bytes = facts.tolist()
    assert resident == 132 // blocks
    memory = torch.zeros(groups * memory_bytes, dtype=torch.uint8)
    counters = torch.zeros(groups, dtype=torch.int32)
    wrong = poisoned(groups * blocks, micro.THREADS, dtype=torch.int32)
    sizes = groups, blocks, size, rounds, -(-blocks * size // (16 * micro.THREADS))
    arguments = *kind, *sizes, memory, counters, wrong, None
    report = library.run("micro_run", *arguments, **schedule)
    return report, int((wrong != 0).sum())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [16, 256, 2048])
@kinds
def test_everything_arrives(library, transport, pattern, size, schedule):
    report, wrong = exchanged(library, transport, pattern, size, schedule=schedule)
    report.check()
    assert wrong == 0


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitizers(sanitizer):
    library = build([SOURCE], sanitizer=sanitizer)
    for transport, pattern in KINDS:
        report, wrong = exchanged(library, transport, pattern, groups=1, rounds=4)
        report.check()
        assert wrong == 0


# Texts of exchanges.h, what stands there instead, and the patterns that go wrong.
WAITS = {
    "    sk::mbarrier_wait_cluster(barrier, round / 2 % 2);\n": "",
    "while (uint32_t(word[i].high >> 32) != flag(round))": "while (false)",
    "    if (m_.thread == 0) sk::wait_at_least(": "    if (false) sk::wait_at_least(",
}
PLACES = {
    "return chunk_of<kPattern>(round, m.group, m.own, owner, i);": (
        "return chunk_of<kPattern>(round, m.group, m.own ^ 1, owner ^ 1, i);"
    ),
    ": word_of<kPattern>(round, m.group, m.own, owner, i);": (
        ": word_of<kPattern>(round, m.group, m.own, owner ^ 1, i);"
    ),
}


@pytest.mark.parametrize("changes", [WAITS, PLACES], ids=["no waits", "wrong slices"])
def test_a_broken_exchange_is_noticed(tmp_path, changes):
    for name in ("micro.cu", "exchanges.h"):
        shutil.copy(SOURCE.with_name(name), tmp_path)
    text = (tmp_path / "exchanges.h").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"exchanges.h must hold this once: {old}"
        text = text.replace(old, new)
    (tmp_path / "exchanges.h").write_text(text)
    library = build([tmp_path / "micro.cu"])
    for kind in KINDS:
        results = [exchanged(library, *kind, schedule=schedule) for schedule in SCHEDULES]
        assert any(wrong or not report.clean for report, wrong in results), kind


def test_stage():
    records = {name: measure() for name, measure in micro.cases(EmulatedMachine())}
    assert len(records) == 2 * len(KINDS)
    for name, record in records.items():
        assert "refused" not in record and isinstance(record["ns"], float)
        assert record["groups"] == (2 if name.endswith("all groups") else 1)
        assert record["resident"] == 132 // record["blocks"]


@pytest.mark.parametrize(
    ("transport", "blocks", "size"), [("st.async", 32, 256), ("counter", 133, 16)]
)
def test_a_refused_launch_is_a_record(transport, blocks, size):
    record = micro.measure(EmulatedMachine(), transport, "all-gather", blocks, size, crowded=False)
    assert record["refused"] and "ns" not in record


@pytest.mark.parametrize(("blocks", "size"), [(64, 4096), (3, 48), (3, 8), (1, 256)])
def test_what_no_block_can_hold_is_refused(blocks, size):
    """Too much shared memory; slices that are no power of two or too small; a group of one."""
    record = micro.measure(EmulatedMachine(), "counter", "all-gather", blocks, size, crowded=False)
    assert record["refused"].startswith("micro_facts: cudaErrorInvalid") and "ns" not in record


def test_a_kernel_that_did_nothing_is_a_failure():
    class Idle(EmulatedMachine):
        def seconds(self, call):
            return 1.0

    with pytest.raises(RuntimeError, match="768 comparisons of what arrived failed"):
        micro.measure(Idle(), "counter", "all-gather", 3, 256, crowded=False)
