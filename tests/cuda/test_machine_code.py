"""Gates on what nvcc makes of every kernel: no spills, no local memory, the right instructions."""

import re
import subprocess

import pytest
import units
from cubins import kernels, tool

from seqkernels.cells import CELLS

pytestmark = [pytest.mark.needs("nvcc"), pytest.mark.exhaustive]

ARCHS = ("80", "90a", "100a")
(CELL,) = (unit for unit in units.CUDA if unit.name == "cell")
KERNELS = [unit for unit in units.CUDA if unit.path.suffix == ".cu"]
# 256 threads a block, 65536 registers: what plan.h assumes of one block a multiprocessor.
REGISTERS = 65536 // 256


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cubins")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("unit", KERNELS, ids=lambda unit: unit.name)
def test_nothing_spills(unit, arch, folder):
    for kernel in kernels(unit, arch, folder):
        assert kernel.stack == 0, f"{kernel.name}: {kernel.stack} bytes of stack"
        assert kernel.spilled == 0, f"{kernel.name}: {kernel.spilled} bytes spilled"
        local = kernel.instructions["LDL"] + kernel.instructions["STL"]
        assert local == 0, f"{kernel.name}: {local} accesses of local memory"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("unit", units.PERSISTENT, ids=lambda unit: unit.name)
def test_persistent_kernels_are_what_the_plan_assumes(unit, arch, folder):
    for kernel in kernels(unit, arch, folder):
        assert kernel.registers <= REGISTERS - 1, kernel.name
        assert kernel.shared == 0, f"{kernel.name}: the plan counts dynamic shared memory alone"
        product = kernel.instructions["HMMA"]
        if not unit.variant.startswith("float32"):
            assert product > 0, f"{kernel.name}: no tensor core instruction"
            assert kernel.instructions["LDSM"] > 0, f"{kernel.name}: no ldmatrix"
        else:
            assert product == 0, f"{kernel.name}: strict float32 must not use tensor cores"
            assert kernel.instructions["FFMA"] + kernel.instructions["FFMA2"] > 0, kernel.name


@pytest.mark.parametrize("unit", units.PERSISTENT, ids=lambda unit: unit.name)
def test_one_kernel_for_each_cell(unit, folder):
    assert len(kernels(unit, "90a", folder)) == len(CELLS)


@pytest.mark.needs("cuda_build")
def test_newer_devices_find_code_to_compile():
    """PTX beside the machine code, where the build asks for it."""
    from seqkernels import _extension

    wanted = re.findall(r"(\d+)\+PTX", _extension.C.cuda_archs)
    if wanted:
        command = [tool("cuobjdump"), "-lptx", _extension.C.__file__]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(f"sm_{arch}.ptx" in listed for arch in wanted), listed


def test_cell_kernels_move_whole_vectors(folder):
    """Float32 by 16 bytes and 16-bit types by 8: the widest of V = 4."""
    for kernel in kernels(CELL, "90a", folder):
        assert kernel.instructions["LDG"] > 0
        assert kernel.registers <= 64, f"{kernel.name}: {kernel.registers} registers"
