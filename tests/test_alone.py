"""Every test file passes by itself: it imports and registers what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

TESTS = Path(__file__).resolve().parent
FILES = sorted(str(path) for path in TESTS.rglob("test_*.py") if path.name != "test_alone.py")


@pytest.mark.parametrize("half", [FILES[::2], FILES[1::2]], ids=["one half", "the other half"])
def test_passes_alone(half):
    command = [sys.executable, str(TESTS / "alone.py"), *half]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_a_file_that_needs_another_fails(tmp_path):
    """It leans on what only the tests of another folder import."""
    leans = tmp_path / "test_leans.py"
    leans.write_text(
        "import sys\n\n\ndef test_leans():\n    assert 'seqkernels.seq2seq' in sys.modules\n"
    )
    command = [sys.executable, str(TESTS / "alone.py"), str(leans)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "test_leans" in done.stdout
