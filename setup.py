"""Build of the one extension module, `seqkernels._C`, with g++, nvcc and ninja.

torch's own build helpers refuse to compile CUDA with a CPU build of torch, so the compilers are
called here. The result uses only torch's stable ABI and works with every torch from 2.10 on, CPU or
CUDA.

Environment:
    SEQKERNELS_CUDA: 1 demands the CUDA kernels, 0 leaves them out; by default they are built where
        a GPU is, for that GPU.
    SEQKERNELS_CUDA_ARCHS: architectures to compile for, which demands the CUDA kernels too; with
        SEQKERNELS_CUDA=1 by default "80+PTX;90a;100a". One with +PTX also runs, compiled by the
        driver, on all that are newer.
    SEQKERNELS_TORCH: the folder of a torch package to build against, by default the one this
        interpreter imports. It may belong to another Python: only its stable ABI is used.
    SEQKERNELS_CELLS: a header with further cells, see "Adding a cell" in docs/design.md. Objects
        have a build folder of their own.
    SEQKERNELS_SPIN_LIMIT: polls after which a kernel that waits for another block gives up and
        traps, by default none. Objects have a build folder of their own.
    CUDA_HOME: the CUDA toolkit, by default /usr/local/cuda.
    CXX: the C++ compiler, by default g++. MAX_JOBS: parallel compilations.
"""

import fcntl
import filecmp
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import units  # noqa: E402

TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10

DEFAULT_ARCHS = "80+PTX;90a;100a"
# Architectures whose machine code is compiled for them alone.
OWN_ARCHS = {"90": "90a", "100": "100a"}


class MissingTool(Exception):
    """Something the build needs is not on this machine."""


def torch_directory():
    """The torch package to build against, found without importing it; None where there is none."""
    if named := os.environ.get("SEQKERNELS_TORCH"):
        if not (Path(named) / "include" / "torch").is_dir():
            raise SystemExit(f"SEQKERNELS_TORCH={named} is no torch package: it has no headers")
        return Path(named)
    if spec := importlib.util.find_spec("torch"):
        return Path(spec.origin).parent
    # An isolated build sees only the packages that it asked for. -E drops the PYTHONPATH that
    # isolates it: a torch that is installed beside it need not be fetched a second time.
    code = "from importlib.util import find_spec as f; print(f('torch').origin)"
    done = subprocess.run(
        [sys.executable, "-E", "-c", code], cwd=Path(sys.prefix), capture_output=True, text=True
    )
    return Path(done.stdout.strip()).parent if done.returncode == 0 else None


def gpu_archs():
    """Architectures of the GPUs in this machine, as nvcc names them; none without a GPU."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    numbers = set(re.findall(r"^(\d+)\.(\d)\s*$", done.stdout, re.M))
    found = ["".join(number) for number in sorted(numbers, key=lambda n: (int(n[0]), n[1]))]
    return [OWN_ARCHS.get(arch, arch) for arch in found if int(arch) >= 80]


def cuda_build():
    """The CUDA toolkit's folder and the architectures to compile for.

    Returns:
        (folder, architectures, None), or (None, [], the reason why there is no CUDA build).
    """
    wanted, named = os.environ.get("SEQKERNELS_CUDA"), os.environ.get("SEQKERNELS_CUDA_ARCHS")
    if wanted == "0":
        return None, [], "left out by SEQKERNELS_CUDA=0"
    demanded = wanted == "1" or bool(named)
    archs = (named or DEFAULT_ARCHS).split(";") if demanded else gpu_archs()
    if not archs:
        return (
            None,
            [],
            "left out, as no GPU of compute capability 8.0 or newer is visible (nvidia-smi); "
            "SEQKERNELS_CUDA=1 compiles them all the same",
        )
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if (home / "bin" / "nvcc").exists():
        return home, archs, None
    if demanded:
        asked = "SEQKERNELS_CUDA=1" if wanted == "1" else f"SEQKERNELS_CUDA_ARCHS={named}"
        raise SystemExit(f"{asked}, but there is no nvcc in {home}/bin; set CUDA_HOME")
    return None, [], f"left out, as there is no nvcc in {home}/bin (CUDA_HOME names the toolkit)"


def compiled_units(cuda):
    """What is compiled on this machine's architecture: only x86 has the wider instruction sets."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    cpu = [u for u in units.CPU if x86 or u.variant not in units.ISAS or u.variant == "baseline"]
    return [*(units.CUDA if cuda else []), *cpu]


def spin_limit():
    """Compiler flags that bound every loop that waits for another block; none by default."""
    polls = os.environ.get("SEQKERNELS_SPIN_LIMIT", "")
    if not polls:
        return []
    if not polls.isdecimal() or int(polls) == 0:
        raise SystemExit(f"SEQKERNELS_SPIN_LIMIT={polls} is no number of polls")
    return [f"-DSK_SPIN_LIMIT={polls}"]


def more_cells():
    """Compiler flags that add cells from outside the package; none by default."""
    named = os.environ.get("SEQKERNELS_CELLS", "")
    if not named:
        return []
    header = Path(named).resolve()
    if not header.is_file() or "SK_FOR_EACH_MORE_CELL" not in header.read_text():
        raise SystemExit(f"SEQKERNELS_CELLS={named} is no header with SK_FOR_EACH_MORE_CELL")
    return [f"'-DSK_MORE_CELLS=\"{header}\"'"]


def build_folder(cuda):
    """One folder per interpreter and options: no object of one enters the library of another."""
    tag = f"{sysconfig.get_config_var('SOABI')}-{'cuda' if cuda else 'cpu'}"
    return ROOT / "build" / (tag + "-cells" * bool(more_cells()) + "-spin" * bool(spin_limit()))


def command_line(words):
    """Words joined for ninja, which passes them to the shell."""
    return " ".join(str(w).replace("$", "$$").replace(" ", "$ ") for w in words)


def write_ninja(path, output, torch_dir, cuda, archs):
    """Write the build file: one object per source, then one shared library."""
    import pybind11
    from ninja import ninja_syntax

    cxx = os.environ.get("CXX", "g++")
    includes = [f"-I{ROOT / 'csrc'}"]
    host = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    host += ["-Werror=switch"]  # a switch over cells, dtypes or number formats leaves none out
    # torch's checks put the source's name into their messages: without the folder it was built in.
    host += [f"-fmacro-prefix-map={ROOT}/="]
    host += [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *more_cells(), *spin_limit()]
    host += [f"-isystem {torch_dir / 'include'}", f"-isystem {pybind11.get_include()}"]
    host += [f"-isystem {sysconfig.get_paths()['include']}"]
    if cuda:
        host += ["-DSK_WITH_CUDA", f"-isystem {cuda / 'include'}"]
        host += [f"'-DSK_CUDA_ARCHS=\"{';'.join(archs)}\"'"]
    link = ["-shared", "-s", f"-L{torch_dir / 'lib'}"]
    # --no-as-needed: the CUDA stream symbol is weak and resolves only if libtorch is really needed.
    link += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-Wl,--as-needed"]
    if cuda:
        link += [f"-L{cuda / 'lib64'}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]

    with path.open("w") as file:
        ninja = ninja_syntax.Writer(file, width=200)
        ninja.variable("ninja_required_version", "1.5")
        ninja.variable("cxx", cxx)
        ninja.rule(
            "cxx",
            command=f"$cxx {' '.join([*includes, *host])} $own -MMD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description="C++ $in",
        )
        if cuda:
            gencode = []
            for arch in archs:
                name, _, ptx = arch.partition("+")
                codes = f"[sm_{name},compute_{name}]" if ptx else f"sm_{name}"
                gencode.append(f"'-gencode=arch=compute_{name},code={codes}'")
            nvcc = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]
            nvcc += ["--threads=2", "--compress-mode=size", *gencode, *more_cells(), *spin_limit()]
            ninja.rule(
                "nvcc",
                command=f"{cuda / 'bin' / 'nvcc'} {' '.join([*includes, *nvcc])} $own -MMD "
                "-MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; false)",
                depfile="$out.d",
                deps="gcc",
                description="CUDA $in",
            )
        ninja.rule("link", command=f"$cxx $in {' '.join(link)} -o $out", description="link $out")
        objects = []
        for unit in compiled_units(cuda):
            rule = "nvcc" if unit.path.suffix == ".cu" else "cxx"
            own = {"own": command_line(unit.flags)}
            objects += ninja.build(unit.object, rule, str(unit.path), variables=own)
        ninja.build(str(output), "link", objects)
        ninja.default(str(output))


class Build(build_ext):
    """Compile with ninja, incrementally; without a compiler install the pure-Python package."""

    report = None

    def run(self):
        super().run()
        if self.report is None:
            return
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        target = package / "seqkernels" / "_build.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.report, indent=2) + "\n")

    def build_extension(self, ext):
        self.report = report = {"compiled": False, "cuda": False, "reason": None}
        try:
            self.compile(ext, report)
            report["compiled"] = True
        except MissingTool as missing:
            report["reason"] = report["cuda_reason"] = str(missing)
            print(f"seqkernels: no compiled kernels: {missing}", file=sys.stderr)

    def compile(self, ext, report):
        """Run ninja; raises MissingTool where the machine lacks a tool."""
        torch_dir = torch_directory()
        if torch_dir is None:
            raise MissingTool("torch is not installed in this environment")
        cxx = os.environ.get("CXX", "g++").split()[0]
        if shutil.which(cxx) is None:
            raise MissingTool(f"the C++ compiler {cxx} was not found (CXX names another)")
        cuda, archs, report["cuda_reason"] = cuda_build()
        report["cuda"] = cuda is not None
        if cuda is None:
            print(f"seqkernels: CUDA kernels {report['cuda_reason']}", file=sys.stderr)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = build_folder(cuda)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS")
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write the same objects
            library = folder / output.name
            write_ninja(folder / "build.ninja", library, torch_dir, cuda, archs)
            subprocess.run(
                [sys.executable, "-m", "ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])],
                check=True,
            )
            take_over(library, output)

    def copy_extensions_to_source(self):
        """Unlike setuptools', over a newer library too: other options may have made it."""
        for ext in self.extensions:
            name = self.get_ext_filename(self.get_ext_fullname(ext.name))
            built = Path(self.build_lib, name)
            if built.exists():  # nothing is built without a compiler
                take_over(built, ROOT / name)


def take_over(library, output):
    """Put a linked library in its place, if another is there: that of other options, say."""
    if not output.exists() or not filecmp.cmp(library, output, shallow=False):
        # A process that has the old file loaded keeps it.
        new = output.with_name(output.name + ".new")
        shutil.copy(library, new)
        new.replace(output)


def isolated_requirements():
    """What an isolated build needs beside the list in pyproject.toml: torch, if there is none."""
    # Under `python setup.py` setuptools would install what is named here.
    isolated = "setuptools.build_meta" in sys.modules
    return ["torch>=2.10"] if isolated and torch_directory() is None else []


setup(
    # Here and not in pyproject.toml, where old and new setuptools disagree on how to write it.
    license="Apache-2.0",
    setup_requires=isolated_requirements(),
    ext_modules=[
        # optional: without a compiler the pure-Python package is installed, and `info` says why.
        Extension("seqkernels._C", sorted({f"csrc/{u.source}" for u in units.CPU}), optional=True)
    ],
    cmdclass={"build_ext": Build},
)
