"""What is shipped, and what a build decides to compile."""

import email
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import setuptools
from test_gpu_build import ROOT, loaded

import seqkernels
from seqkernels import _extension


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py as a module that builds nothing, on a machine with neither a GPU nor nvcc."""
    for name in ("SEQKERNELS_CUDA", "SEQKERNELS_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return loaded("seqkernels_setup", ROOT / "setup.py")


def command(folder: Path, name: str, text: str) -> None:
    """A command `name` in `folder`/bin that prints `text`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '{text}'\n")
    path.chmod(0o755)


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    command(tmp_path, "nvcc", "")
    command(tmp_path, "nvidia-smi", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    return tmp_path


@pytest.mark.parametrize(
    ("printed", "archs"),
    [
        ("9.0\\n9.0\\n", ["90a"]),
        ("10.0\\n8.6\\n", ["86", "100a"]),
        ("12.0\\n", ["120"]),
        ("7.5\\n", []),
        ("No devices were found\\n", []),
    ],
)
def test_cuda_is_compiled_for_the_gpu_at_hand(setup_py, toolkit, printed, archs):
    command(toolkit, "nvidia-smi", printed)
    home, found, reason = setup_py.cuda_build()
    assert found == archs
    assert home == (toolkit if archs else None)
    assert archs or "no GPU" in reason and "SEQKERNELS_CUDA=1" in reason


def test_cuda_is_compiled_on_demand_without_a_gpu(setup_py, toolkit, monkeypatch):
    monkeypatch.setenv("SEQKERNELS_CUDA_ARCHS", "80;90a")
    assert setup_py.cuda_build()[:2] == (toolkit, ["80", "90a"])
    monkeypatch.setenv("SEQKERNELS_CUDA", "0")
    assert setup_py.cuda_build()[2] == "left out by SEQKERNELS_CUDA=0"
    monkeypatch.setenv("SEQKERNELS_CUDA", "1")
    monkeypatch.delenv("SEQKERNELS_CUDA_ARCHS")
    assert setup_py.cuda_build()[1] == ["80+PTX", "90a", "100a"]


def test_cuda_without_nvcc(setup_py, toolkit, monkeypatch):
    command(toolkit, "nvidia-smi", "9.0\\n")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert "no nvcc in /nonexistent/bin" in setup_py.cuda_build()[2]
    monkeypatch.setenv("SEQKERNELS_CUDA_ARCHS", "90a")
    with pytest.raises(SystemExit, match="SEQKERNELS_CUDA_ARCHS=90a, but there is no nvcc"):
        setup_py.cuda_build()


def test_the_source_distribution_is_whole(tmp_path):
    script = ["setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *script], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        metadata = email.message_from_binary_file(
            tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/PKG-INFO")
        )
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    files = [*sources, *(ROOT / "seqkernels").rglob("*.py")]
    needed = {path.relative_to(ROOT).as_posix() for path in files}
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "seqkernels/py.typed"}
    assert needed <= names, needed - names
    assert not [n for n in names if re.search(r"^tests|\.so$|_build\.json$", n)]
    assert metadata["Version"] == seqkernels.__version__
    assert metadata["License"] == "Apache-2.0"


def test_a_tree_without_kernels_says_so(monkeypatch, tmp_path):
    tree, other = tmp_path / "tree", tmp_path / "site"
    for folder in (tree, other):
        (folder / "seqkernels").mkdir(parents=True)
    (tree / "setup.py").write_text("")
    monkeypatch.setattr(_extension, "build_report", dict)
    monkeypatch.setattr(_extension, "REASON", "no module")
    text = _extension._unexpected_absence
    monkeypatch.setattr(sys, "path", [str(other)])
    assert "(no module)" in text(tree / "seqkernels") and "make build" in text(tree / "seqkernels")
    (other / "seqkernels" / "_C.so").write_text("")
    assert f"hides the package installed in {other}" in text(tree / "seqkernels")
    assert "Install seqkernels again" in text(other / "seqkernels")
    monkeypatch.setattr(_extension, "build_report", lambda: {"compiled": False})
    assert text(tree / "seqkernels") is None
