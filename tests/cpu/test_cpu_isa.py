"""Every instruction set of this processor, on one and two threads, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_cases import op
from tiers import first_of

ISAS = ("baseline", "avx2", "avx512")
HERE = Path(__file__).parent


def environment(isa: str | None) -> dict[str, str]:
    """The environment of a process under an instruction set; None leaves the choice to the op."""
    found = {k: v for k, v in os.environ.items() if k != "SEQKERNELS_CPU_ISA"}
    if isa is not None:
        found["SEQKERNELS_CPU_ISA"] = isa
    root = str(HERE.parent.parent)
    return found | {"PYTHONPATH": os.pathsep.join([root, found.get("PYTHONPATH", "")])}


def run_python(arguments: list[str], isa: str | None) -> str:
    """What a Python process prints under an instruction set."""
    printed = subprocess.run(
        [sys.executable, *arguments], env=environment(isa), capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    return printed.stdout


@pytest.fixture(scope="module")
def best() -> str:
    """The best instruction set of this processor."""
    code = "import torch, seqkernels; print(torch.ops.seqkernels.cpu_isa())"
    return run_python(["-c", code], None).strip()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "isa", ["baseline", *(pytest.param(isa, marks=pytest.mark.exhaustive) for isa in ISAS[1:])]
)
def test_parity_and_equal_reruns(isa, threads, best):
    found = json.loads(run_python([str(HERE / "isa_probe.py"), str(threads)], isa))
    assert found["isa"] == (isa if ISAS.index(isa) <= ISAS.index(best) else best)
    assert found["checked"] > 100


@pytest.mark.exhaustive
@pytest.mark.parametrize("isa", ISAS)
def test_cells_from_outside(isa, best):
    """They are in no list of the package: what kernels do comes from what a cell declares."""
    found = json.loads(run_python([str(HERE / "more_cells_probe.py")], isa))
    assert found["isa"] == (isa if ISAS.index(isa) <= ISAS.index(best) else best)
    assert found["checked"] > 90


@pytest.mark.parametrize("isa", first_of(ISAS[::-1]))
def test_tanh_and_sigmoid_alone(isa, best):
    found = run_python([str(HERE / "activations_probe.py")], isa).strip()
    assert found == (isa if ISAS.index(isa) <= ISAS.index(best) else best)


def test_the_default_is_an_instruction_set():
    assert op("cpu_isa")() in ISAS


def test_the_number_of_threads_does_not_matter():
    inputs = [torch.randn(9, 6, 4 * 192), torch.randn(4 * 192, 192) / 14, None]
    state = [torch.randn(6, 192) for _ in range(2)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(op("lstm_sequence")(*inputs, *state, None, None, None, False, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
