"""Guard pages around all memory of the CPU ops: import it before anything of seqkernels.

Tensors, arguments as well as results, and the memory that kernels take for themselves begin or end
at a page that may not be touched, and are full of NaN at first.
"""

import contextlib
import ctypes
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "emulator")]

import torch  # noqa: E402
from emulator import compile_objects, link  # noqa: E402

SOURCES = [HERE / "guarded_workspace.cpp"]
SOURCES += [HERE.parent / "emulator" / f"guarded_{part}.cpp" for part in ("memory", "torch")]


def build() -> Path:
    """Compile the allocators, once for this torch."""
    package = Path(torch.__file__).parent
    flags = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden"]
    flags += [f"-I{HERE.parent / 'emulator'}", f"-isystem{package / 'include'}"]
    version = torch.__version__.encode()
    objects = compile_objects([(source, flags, version) for source in SOURCES])
    return link(objects, "guarding", ".so", ["-shared", f"-L{package / 'lib'}", "-lc10"])


library = ctypes.CDLL(str(build()), ctypes.RTLD_GLOBAL)
library.guard_error.restype = ctypes.c_char_p
library.workspaces_taken.restype = ctypes.c_long


@contextlib.contextmanager
def guarded(before: bool):
    """Guard new memory: with the page before it, or else with the page behind its last byte."""
    library.guard_memory(1, before)
    try:
        yield
    finally:
        library.guard_memory(0, before)


def check() -> None:
    """Fail if memory that has been freed was written beyond its end, short of the page."""
    report = library.guard_error().decode()
    assert not report, report
