"""Every wrapper in csrc/cuda/ptx/device*.h does on a GPU what it does in the emulator.

The kernels are compiled by nvcc for each architecture wherever nvcc is, and run where a GPU is.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from golden_cases import CASES, SOURCES
from gpu import require_cuda

ROOT = Path(__file__).resolve().parent.parent.parent
NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
# The disassembler comes with Triton.
TRITON = importlib.util.find_spec("triton")
NVDISASM = TRITON and Path(TRITON.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"

# Refused by devices before sm_90.
NEED_CLUSTERS = ("cluster", "exchange")


def compile_with_nvcc(architecture: str, output: Path, *flags: str) -> str:
    """Compile the golden kernels; returns what the assembler says about each."""
    command = [NVCC, "-std=c++17", "-O3", f"-arch={architecture}", "-I", ROOT / "csrc"]
    command += ["-Xptxas", "-v", *flags, "-o", output]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.exhaustive
@pytest.mark.needs("nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100a"])
def test_compiles(architecture, tmp_path):
    report = compile_with_nvcc(architecture, tmp_path / "golden.cubin", "-cubin", SOURCES[0])
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)
    assert len(spills) >= 15 and set(spills) == {("0", "0")}
    assert "warning" not in report, report


# Each wrapper's instruction in sm_90 machine code: 128-bit accesses are one access, copies and
# stores are asynchronous, products run on the tensor cores.
INSTRUCTIONS = (
    "HMMA.16816.F32 ",
    "HMMA.16816.F32.BF16",
    "HMMA.1688.F32.TF32",
    "LDSM.16.M88.4",
    "LDGSTS.E.BYPASS.128",
    "LDG.E.128.STRONG.GPU",
    "STG.E.128.STRONG.GPU",
    "LDG.E.64.STRONG.GPU",
    "REDG.E.ADD.STRONG.GPU",
    "STAS.128",
    "STAS.64",
    "UBLKCP.S.G",
    "UBLKCP.S.S",
    "SYNCS.PHASECHK",
    "UCGABAR_ARV",
    "UCGABAR_WAIT",
    "SR_CLOCKLO",
)


@pytest.mark.exhaustive
@pytest.mark.needs("nvcc", "triton")
def test_instructions(tmp_path):
    cubin = tmp_path / "golden.cubin"
    compile_with_nvcc("sm_90a", cubin, "-cubin", SOURCES[0])
    done = subprocess.run(
        [str(NVDISASM), "-c", str(cubin)], capture_output=True, text=True, check=True
    )
    missing = [name for name in INSTRUCTIONS if name not in done.stdout]
    assert not missing, missing


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    require_cuda("golden tests of the device wrappers")
    major, minor = torch.cuda.get_device_capability()
    output = tmp_path_factory.mktemp("golden") / "golden.so"
    architecture = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    compile_with_nvcc(architecture, output, "-shared", "-Xcompiler", "-fPIC", *SOURCES)
    return ctypes.CDLL(str(output))


@pytest.fixture
def call(library):
    """Run a launcher on copies of CPU tensors and copy the results back."""

    def run(name, *arguments):
        copies = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        values = [
            ctypes.c_void_p(c.data_ptr() if isinstance(c, torch.Tensor) else None)
            if c is None or isinstance(c, torch.Tensor)
            else c
            for c in copies
        ]
        torch.cuda.synchronize()
        assert getattr(library, name)(*values) == 0, name
        torch.cuda.synchronize()
        for a, c in zip(arguments, copies, strict=True):
            if isinstance(a, torch.Tensor):
                a.copy_(c)

    return run


@pytest.mark.parametrize("case", CASES)
def test_on_gpu(call, case):
    if case in NEED_CLUSTERS and torch.cuda.get_device_capability() < (9, 0):
        with pytest.raises(AssertionError):
            CASES[case](call)
    else:
        CASES[case](call)


def test_refused_launches(library):
    x = torch.zeros(100000, dtype=torch.int32, device="cuda")
    pointer = ctypes.c_void_p(x.data_ptr())
    none = ctypes.c_void_p(None)
    assert library.test_exchange_cluster(pointer, 17, 1, 0, none) != 0
    assert library.test_exchange_flagged(pointer, pointer, 50000, 1, 0, none) != 0
    torch.cuda.synchronize()
    # A refused launch leaves no error behind for the next one.
    values = torch.randint(1000, (40,), dtype=torch.int32, device="cuda")
    result = torch.empty_like(values)
    arguments = [ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(result.data_ptr()), 40, none]
    assert library.test_named_barriers(*arguments) == 0
    assert torch.equal(result, values + 1)


def test_resident_clusters(library):
    assert library.test_max_resident(1, 0) > 0
    assert library.test_max_resident(1, 1 << 20) < 0
    if torch.cuda.get_device_capability() >= (9, 0):
        assert library.test_max_resident(16, 1024) > 0
