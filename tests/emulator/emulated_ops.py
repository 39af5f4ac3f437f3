"""The CUDA ops on CPU tensors: binding and kernels unchanged, run by the emulator.

`ops()` builds and loads `torch.ops.seqkernels_emulated`, whose ops have the names and schemas of
`torch.ops.seqkernels`. torch's products take the place of cuBLAS. TOYS is the same for the cells of
tests/cells, a library of its own.
"""

import contextlib
import functools
from pathlib import Path

import torch
from emulator import (
    CORE,
    CORE_FLAGS,
    FLAGS,
    HERE,
    ROOT,
    SCHEDULES,
    TOYS_FOLDER,
    _headers,
    compile_objects,
    cuda_home,
    link,
    op_flags,
    torch_libraries,
    units,
)
from emulator import Library as EmulatorLibrary

import seqkernels  # noqa: F401  (loads torch's libraries)

KERNELS = [unit for unit in units.CUDA if unit.path.suffix == ".cu"]
BINDINGS = [HERE / "emulated_ops.cpp", ROOT / "csrc" / "ops.cpp", ROOT / "csrc" / "decode_ops.cpp"]
BINDINGS += [unit.path for unit in units.CUDA if unit.path.suffix == ".cpp"]


class EmulatedOps:
    """One build of the kernels and their ops.

    Args:
        namespace: the ops are `torch.ops.<namespace>`.
        flags: further compiler flags.
    """

    def __init__(self, namespace: str, *flags: str):
        self.namespace, self.flags = namespace, flags

    def _build(self) -> Path:
        includes = [f"-I{p}" for p in (HERE, ROOT / "csrc")]
        includes += [f"-I{cuda_home() / 'include'}"]
        kernels = [*FLAGS, *self.flags, *includes]
        core = [*CORE_FLAGS, *includes]
        flags = [*kernels, *op_flags(self.namespace)]
        headers = _headers()
        own = headers + b"".join(b.read_bytes() for b in (ROOT / "csrc").rglob("*.cpp"))
        own += torch.__version__.encode()
        jobs = [(k, kernels, headers) for k in KERNELS]
        jobs += [(HERE / f"{c}.cpp", core, headers) for c in CORE]
        jobs += [(b, flags, own) for b in BINDINGS]
        # Not the stable ABI: torch's allocators are no part of it.
        torch_include = f"-isystem{Path(torch.__file__).parent / 'include'}"
        jobs.append((HERE / "guarded_torch.cpp", [*FLAGS, *includes, torch_include], own))
        flags = ["-shared", "-Wl,-Bsymbolic", *torch_libraries()]
        return link(compile_objects(jobs), "ops", ".so", flags)

    @functools.cached_property
    def _library(self) -> EmulatorLibrary:
        path = self._build()
        torch.ops.load_library(str(path))
        return EmulatorLibrary(path, None)

    def library(self) -> EmulatorLibrary:
        """The loaded library, for recording.py."""
        return self._library

    def ops(
        self,
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
        functions = self.library().functions
        functions.emu_begin(SCHEDULES.index(schedule), seed)
        functions.emulated_device(processors, shared_per_block, max_cluster, max_units)
        return getattr(torch.ops, self.namespace)

    def refuse(
        self, code=0, *, clusters=False, cooperative=False, trials_pass=False, resident=0
    ) -> None:
        """Say which launches the device refuses from now on; by default none.

        Args:
            code: the cudaError_t, or 0.
            clusters: only launches with clusters.
            cooperative: only cooperative ones.
            trials_pass: only launches that are no trial.
            resident: how many clusters are resident together at most; 0 is as many as fit.
        """
        self.library().functions.emu_refuse(code, clusters, cooperative, trials_pass, resident)

    @contextlib.contextmanager
    def guarded(self):
        """New tensors are full of NaN and end at a page that faults; needed for recording, too."""
        self.library().functions.emu_guard_torch(64, 0)
        try:
            yield
        finally:
            self.library().functions.emu_guard_torch(0, 0)

    def check_memory(self) -> None:
        """Fail if a kernel wrote beyond a tensor that has been freed since the last `ops()`."""
        report = self.library().functions.emu_error().decode()
        assert not report, report


_PRODUCT = EmulatedOps("seqkernels_emulated")
library, ops, refuse = _PRODUCT.library, _PRODUCT.ops, _PRODUCT.refuse
guarded, check_memory = _PRODUCT.guarded, _PRODUCT.check_memory
TOYS = EmulatedOps(
    "seqkernels_toys",
    '-DSK_MORE_CELLS="more_cells.h"',
    "-DSK_ONLY_MORE_CELLS",
    f"-I{TOYS_FOLDER}",
)
