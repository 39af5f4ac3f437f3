"""Build everything that a GPU machine runs, here, where there may be no GPU: `make gpu-build`.

Compiles for another Python the extension, the same with a limit on every loop that waits for
another block, and the measuring kernels of bench/gpu; incrementally. Then lists what was made in
build/gpu/build.json. To be carried to the machine: the files that this names, and that file. On
the machine itself the same command, without --python, builds for the Python at hand.

Environment:
    SEQKERNELS_CUDA_ARCHS: architectures to compile for, by default "90a".
    SEQKERNELS_TORCH: the torch package to build against; by default that of the Python to build
        for, or else of the one that runs this script.
    SEQKERNELS_COMMIT: the commit, for a copy without its history.
    CUDA_HOME, CXX, MAX_JOBS: as in setup.py.

Usage: python scripts/gpu_build.py [--python python3.12]
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import libraries, manifest  # noqa: E402

# About a second, where a wait takes microseconds.
SPIN_LIMIT = 1 << 20
SPIN = libraries.FOLDER / "spin"
TOOLS = {"setuptools": "setuptools>=77", "ninja": "ninja", "pybind11": "pybind11>=2.12"}
# Much more would take long to carry.
LIMIT_BYTES = 30 * 10**6

QUESTIONS = """
import importlib.util, json, sysconfig
torch = importlib.util.find_spec("torch")
print(json.dumps({
    "tag": sysconfig.get_config_var("SOABI"),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "missing": [name for name in %r if importlib.util.find_spec(name) is None],
    "torch": torch and torch.submodule_search_locations[0],
}))
"""


def ask(python: str) -> dict:
    """What the build has to know of an interpreter."""
    command = [python, "-c", QUESTIONS % sorted(TOOLS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def with_tools(python: str) -> tuple[str, dict]:
    """An interpreter of the same Python that has the build tools, and what it says of itself."""
    found = ask(python)
    if not found["missing"]:
        return python, found
    folder = ROOT / "build" / f"tools-{found['tag']}"
    own = folder / "bin" / "python"
    if not own.exists() or ask(str(own))["missing"]:
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(own), "-m", "pip", "install", "-q", *TOOLS.values()], check=True)
    return str(own), ask(str(own)) | {"torch": found["torch"]}


def torch_folder(found: dict) -> str:
    """The torch package to build against."""
    here = importlib.util.find_spec("torch")
    folder = os.environ.get("SEQKERNELS_TORCH") or found["torch"]
    folder = folder or (here and here.submodule_search_locations[0])
    if not folder:
        raise SystemExit("there is no torch to build against: SEQKERNELS_TORCH names its folder")
    return folder


def build_extension(python: str, folder: Path, options: dict[str, str]) -> None:
    """Run setup.py; the module and its report come to `folder`/seqkernels."""
    place = ["--inplace"] if folder == ROOT else ["--build-lib", str(folder)]
    subprocess.run(
        [python, "setup.py", "-q", "build_ext", *place],
        cwd=ROOT,
        env={**os.environ, "SEQKERNELS_CUDA": "1", **options},
        check=True,
    )
    # setup.py also ends well where a tool is missing and nothing was compiled.
    report = json.loads((folder / "seqkernels" / "_build.json").read_text())
    if not (report["compiled"] and report["cuda"]):
        raise SystemExit(f"nothing was compiled: {report['reason'] or report['cuda_reason']}")


def ninja_file(archs: str) -> str:
    """The build file of the measuring kernels: one library each."""
    nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC", "--compress-mode=size"]
    flags += [f"-I{ROOT / 'csrc'}"]
    flags += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs.split(";")]
    lines = [
        "rule compile",
        f"  command = {nvcc} {' '.join(flags)} $defines -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {nvcc} -shared -Xlinker=-s $in -o $out",
    ]
    for name, source in libraries.SOURCES.items():
        defines = " ".join(f"-D{d}" for d in source.defines)
        lines.append(f"build {name}.o: compile {source.path}\n  defines = {defines}")
        lines.append(f"build {libraries.FOLDER / name}.so: link {name}.o")
    return "\n".join(lines) + "\n"


def build_libraries(python: str, archs: str) -> None:
    """Compile and link the measuring kernels."""
    folder = ROOT / "build" / "gpu-objects"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(archs))
    jobs = os.environ.get("MAX_JOBS")
    command = [python, "-m", "ninja", "--quiet", "-C", str(folder), *(["-j", jobs] if jobs else [])]
    subprocess.run(command, check=True)


def git(*arguments: str) -> str | None:
    """What git says of this tree; None where it is no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main(arguments: list[str] | None = None) -> int:
    """Build, list, and say how large everything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="the Python to build for")
    wanted = parser.parse_args(arguments).python
    if shutil.which(wanted) is None:
        raise SystemExit(f"{wanted} was not found; GPU_PYTHON names the GPU machine's Python")
    python, found = with_tools(wanted)
    archs = os.environ.get("SEQKERNELS_CUDA_ARCHS", "90a")
    facts = {
        "sources": manifest.sources(),  # before the build: what is changed meanwhile makes it stale
        "commit": os.environ.get("SEQKERNELS_COMMIT") or git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": found["tag"],
        "archs": archs,
    }
    options = {"SEQKERNELS_CUDA_ARCHS": archs, "SEQKERNELS_TORCH": torch_folder(found)}
    limited = {**options, "SEQKERNELS_SPIN_LIMIT": str(SPIN_LIMIT)}
    jobs = [
        lambda: build_extension(python, ROOT, options),
        lambda: build_extension(python, SPIN, limited),
        lambda: build_libraries(python, archs),
    ]
    # A build waits for its slowest file: on many cores they overlap.
    with ThreadPoolExecutor(3 if (os.cpu_count() or 1) >= 8 else 1) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()
    names = f"_C{found['suffix']}", "_build.json"
    files = [folder / "seqkernels" / name for folder in (ROOT, SPIN) for name in names]
    files += [libraries.FOLDER / f"{name}.so" for name in libraries.SOURCES]
    sizes = manifest.write(facts, files)["files"]
    for name, size in sizes.items():
        print(f"{size / 1e6:8.2f} MB  {name}")
    total = sum(sizes.values())
    print(f"{total / 1e6:8.2f} MB  for {found['tag']}, sm_{archs.replace(';', ', sm_')}")
    if total > LIMIT_BYTES:
        raise SystemExit(f"more than {LIMIT_BYTES / 1e6:.0f} MB is too much to carry")
    return 0


if __name__ == "__main__":
    sys.exit(main())
