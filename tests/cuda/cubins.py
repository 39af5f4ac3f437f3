"""What nvcc made of the kernels: resources and machine code, read without a GPU."""

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import units
from units import Unit

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Kernel:
    """One kernel of one architecture, as ptxas reports it."""

    name: str
    registers: int
    stack: int
    spilled: int
    shared: int  # static bytes
    instructions: Counter  # by opcode, without modifiers


def nvcc() -> Path | None:
    """The compiler, or None where the CUDA toolkit is not installed."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return home / "bin" / "nvcc" if (home / "bin" / "nvcc").exists() else None


def tool(name: str) -> str | None:
    """A tool of the toolkit, or the copy inside the Triton wheel."""
    home = nvcc()
    if home is not None and (home.parent / name).exists():
        return str(home.parent / name)
    if shutil.which(name):
        return shutil.which(name)
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else None


def built(unit: Unit, arch: str) -> Path | None:
    """The object that setup.py has made of `unit`, if it is up to date and holds `arch`."""
    inputs = [unit.path, *units.CSRC.rglob("*.h")]
    newest = max(path.stat().st_mtime for path in inputs)
    for output in ROOT.glob(f"build/*-cuda/{unit.object}"):
        log = Path(f"{output}.log")
        if output.stat().st_mtime > newest and log.exists() and f"'sm_{arch}'" in log.read_text():
            return output
    return None


def compile_for(unit: Unit, arch: str, folder: Path) -> tuple[Path, str]:
    """A file with the machine code for `arch`, and what ptxas said of it."""
    output = built(unit, arch)
    if output is not None:
        report = Path(f"{output}.log").read_text()
        entries = re.split(r"(?=ptxas info\s+: Compiling entry function)", report)
        return output, "".join(entry for entry in entries if f"'sm_{arch}'" in entry)
    output = folder / f"{unit.name}.{arch}.cubin"
    command = [str(nvcc()), "-std=c++17", "-O3", f"-I{units.CSRC}", "-Xptxas=-v", "-cubin"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    command += [*unit.flags, str(unit.path), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return output, done.stderr


@cache
def kernels(unit: Unit, arch: str, folder: Path) -> list[Kernel]:
    """What nvcc makes of a unit of csrc for `arch`: of the build, or compiled for this."""
    output, log = compile_for(unit, arch, folder)
    command = [tool("cuobjdump"), "-sass", "-arch", f"sm_{arch}", str(output)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for block in code.split("Function : ")[1:]:
        name, _, body = block.partition("\n")
        opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", body, re.M)
        found[name.strip()] = Counter(opcodes)
    result = []
    for entry in re.split(r"Compiling entry function '", log)[1:]:
        name = entry.split("'")[0]
        numbers = {
            key: int(match.group(1)) if (match := re.search(pattern, entry)) else 0
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "stack": r"(\d+) bytes stack frame",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
                "shared": r"(\d+) bytes smem",
            }.items()
        }
        result.append(
            Kernel(
                name,
                numbers["registers"],
                numbers["stack"],
                numbers["stores"] + numbers["loads"],
                numbers["shared"],
                found[name],
            )
        )
    return result
