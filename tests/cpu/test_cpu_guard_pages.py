"""No CPU op touches what lies beside its memory, for every instruction set, in processes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cpu_isa import ISAS, environment
from tiers import first_of

PROBE = Path(__file__).parent / "guard_probe.py"


def run(mode: str, isa: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, PROBE, mode], env=environment(isa), capture_output=True, text=True
    )


@pytest.mark.parametrize("side", ["before", "behind"])
@pytest.mark.parametrize("isa", first_of(ISAS[::-1]))
def test_every_op_stays_within_its_memory(isa, side):
    done = run(side, isa)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{isa}, page {side}: {last}\n{done.stderr[-3000:]}"
    found = json.loads(last[0])
    assert found["calls"] > 900 and found["workspaces"] > 900


@pytest.mark.parametrize("mode", first_of(["read-behind-result", "read-before", "read-behind"]))
def test_a_byte_beside_a_tensor_ends_the_process(mode):
    done = run(mode)
    assert done.returncode == -signal.SIGSEGV
    assert "in touch" in done.stderr, done.stderr
