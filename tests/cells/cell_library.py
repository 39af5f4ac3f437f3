"""The CPU ops of cells from outside the package, in a library with a namespace of its own."""

from pathlib import Path

import torch
from emulator import ROOT, compile_objects, link, op_flags, torch_libraries, units

HERE = Path(__file__).resolve().parent


def build(cells: Path, library: str) -> Path:
    """Compile the CPU kernels and ops for other cells than the package's own.

    Args:
        cells: the header that includes them and defines SK_FOR_EACH_MORE_CELL.
        library: namespace of the ops, `torch.ops.<library>`.

    Returns:
        The shared library, for `torch.ops.load_library`.
    """
    flags = ["-std=c++17", "-O2", "-fPIC", f"-I{ROOT / 'csrc'}", *op_flags(library)]
    flags += ["-DSK_ONLY_MORE_CELLS", f'-DSK_MORE_CELLS="{cells}"']
    headers = sorted([*(ROOT / "csrc").rglob("*.h"), *cells.parent.glob("*.h")])
    content = b"".join(header.read_bytes() for header in headers) + torch.__version__.encode()
    jobs = [(unit, flags, content) for unit in units.CPU if unit.source != "module.cpp"]
    return link(compile_objects(jobs), library, ".so", ["-shared", *torch_libraries()])


def load() -> torch._ops._OpNamespace:
    """The CPU ops of the cells of the tests."""
    torch.ops.load_library(str(build(HERE / "more_cells.h", "seqkernels_more_cells")))
    return torch.ops.seqkernels_more_cells
