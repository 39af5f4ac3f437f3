"""One compiled kernel serves every T and N, and hidden sizes fall into few classes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seqkernels.cells import CELLS

pytestmark = [pytest.mark.needs("triton"), pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def kernels():
    """Scenario to the kernels of each of its calls, all of which should be the same."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).parent / "specialised.py"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_nothing_recompiles_for_another_length_batch_direction_or_alignment(kernels):
    assert len(kernels) > 5 * 8
    for scenario, calls in kernels.items():
        assert len(calls) > 1 and calls[0]
        for call in calls[1:]:
            assert call == calls[0], scenario


@pytest.mark.parametrize("cell", CELLS)
def test_hidden_sizes_fall_into_three_classes(kernels, cell):
    """By the width of a row's loads: the scenarios above would hold if nothing were noted."""
    classes = [str(kernels[f"{cell} H class {i}"][0]) for i in range(3)]
    assert len(set(classes)) == 3
