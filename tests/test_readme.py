"""The README keeps its word: its examples run as written, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("torch.Size([20, 8, 64])")
    assert "lstm: 20 steps, batch size 8, input size 128, hidden size 64" in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in (
        "demo",
        "test",
        "test-all",
        "test-rest",
        "build",
        "lint",
        "bench",
        "docs",
        "wheel",
        "gpu",
        "gpu-build",
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_info_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "seqkernels", "info"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "What to do next:" in done.stdout
