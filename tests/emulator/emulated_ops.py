"""The CUDA ops on CPU tensors: binding and kernels unchanged, run by the emulator.

`ops()` builds and loads `torch.ops.seqkernels_emulated`, whose ops have the names and schemas of
`torch.ops.seqkernels`. torch's products take the place of cuBLAS.
"""

import contextlib
import functools
import sysconfig
from pathlib import Path

import torch
from emulator import (
    CORE,
    CORE_FLAGS,
    FLAGS,
    HERE,
    ROOT,
    SCHEDULES,
    _headers,
    compile_objects,
    cuda_home,
    link,
)
from emulator import Library as EmulatorLibrary

import seqkernels  # noqa: F401  (loads torch's libraries)

KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
BINDINGS = [HERE / "emulated_ops.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))]
BINDINGS = [b for b in BINDINGS if b.name != "binding.cpp"]  # emulated_ops.cpp includes it


def _library() -> Path:
    torch_dir = Path(torch.__file__).parent
    includes = [f"-I{p}" for p in (HERE, ROOT / "csrc", ROOT / "csrc" / "cuda")]
    includes += [f"-I{cuda_home() / 'include'}", f"-isystem{torch_dir / 'include'}"]
    includes += [f"-isystem{sysconfig.get_paths()['include']}"]
    flags = [*FLAGS, "-fvisibility=hidden", "-DTORCH_TARGET_VERSION=0x020a000000000000", *includes]
    headers = _headers()
    own = headers + b"".join(b.read_bytes() for b in (ROOT / "csrc").rglob("*.cpp"))
    own += torch.__version__.encode()
    kernel_includes = [*includes[:3], f"-I{cuda_home() / 'include'}"]
    jobs = [(k, [*FLAGS, *kernel_includes], headers) for k in KERNELS]
    jobs += [(HERE / f"{c}.cpp", [*CORE_FLAGS, *kernel_includes], headers) for c in CORE]
    jobs += [(b, flags, own) for b in BINDINGS]
    # Not the stable ABI: torch's allocators are no part of it.
    jobs.append((HERE / "guarded_torch.cpp", [*FLAGS, *includes], own))
    libraries = [f"-L{torch_dir / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    flags = ["-shared", "-Wl,-Bsymbolic", *libraries]
    return link(compile_objects(jobs), "ops", ".so", flags)


@functools.cache
def library() -> EmulatorLibrary:
    """The loaded library, for recording.py."""
    path = _library()
    torch.ops.load_library(str(path))
    return EmulatorLibrary(path, None)


def ops(
    schedule: str = "round robin",
    seed: int = 1,
    *,
    processors: int = 132,
    shared_per_block: int = 227 << 10,
    max_cluster: int = 16,
    max_units: int = 256,
):
    """The emulated ops, with every later launch on the named schedule.

    Args:
        schedule: one of SCHEDULES.
        seed: of the shuffled schedule.
        processors: multiprocessors of the device that plans are made for.
        shared_per_block: bytes of shared memory that a block may use there.
        max_cluster: largest cluster; 1 makes groups exchange through L2.
        max_units: most hidden units of a block; small layers are cut up by a small one.
    """
    library().functions.emu_begin(SCHEDULES.index(schedule), seed)
    library().functions.emulated_device(processors, shared_per_block, max_cluster, max_units)
    return torch.ops.seqkernels_emulated


def refuse(code=0, *, clusters=False, cooperative=False, trials_pass=False, resident=0):
    """Say which launches the device refuses from now on; by default none.

    Args:
        code: the cudaError_t, or 0.
        clusters: only launches with clusters.
        cooperative: only cooperative ones.
        trials_pass: only launches that are no trial.
        resident: how many clusters are resident together at most; 0 is as many as fit.
    """
    library().functions.emu_refuse(code, clusters, cooperative, trials_pass, resident)


@contextlib.contextmanager
def guarded():
    """New tensors are full of NaN and end at a page that faults; needed for recording, too."""
    library().functions.emu_guard_torch(64, 0)
    try:
        yield
    finally:
        library().functions.emu_guard_torch(0, 0)


def check_memory() -> None:
    """Fail if a kernel wrote beyond a tensor that has been freed since the last `ops()`."""
    report = library().functions.emu_error().decode()
    assert not report, report
