"""Build .cu files for the CPU emulator and call their launchers from Python.

    library = build(["csrc/cuda/stepwise/cell.cu"])
    library.run("sk_lstm_cell", x, y, n, None, schedule="shuffled").check()

A launcher is an extern "C" function that returns an error code. Arrays (numpy or torch, contiguous)
become pointers: they are copied to memory that ends at a guard page, and copied back afterwards.
`Struct` becomes a pointer to a C structure whose pointers may be arrays too.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "csrc"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import units  # noqa: E402

CACHE = ROOT / "build" / "emulator"
TOYS_FOLDER = ROOT / "tests" / "cells"  # cells that the package does not have
CORE = ["emu_core", "emu_schedule", "emu_fiber", "emu_math", "emu_memory", "emu_run"]
CORE += ["guarded_memory"]
SCHEDULES = ("round robin", "shuffled", "depth first")

# What every object is compiled with. A kernel's uninitialised registers hold a pattern, not zeros.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-DSK_EMULATE", "-ftrivial-auto-var-init=pattern"]
# Most of a run's time is spent in the core, most of a build's time on the kernels.
CORE_FLAGS = [*FLAGS, "-O2"]
SANITIZERS = {
    None: ([], []),
    # The core is never instrumented: it only learns which sanitizer watches the kernels.
    "address": (["-DEMU_ASAN"], ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]),
    # g++ instruments calls of memset and memcpy, but not all of those that it expands inline.
    "thread": (
        ["-DEMU_TSAN"],
        ["-fsanitize=thread", "-fno-builtin-memset", "-fno-builtin-memcpy"],
    ),
}


class EmulatorError(AssertionError):
    """A launch ended with an error code or a report."""


@dataclass(frozen=True)
class Report:
    """What one call of a launcher left behind."""

    code: int  # the launcher's return value, a cudaError_t
    error: str  # the emulator's report; empty where it found nothing
    sanitizer: str  # the sanitizer's reports; always empty without one
    switches: int  # how often a thread was resumed
    seconds: float

    @property
    def clean(self) -> bool:
        return self.code == 0 and not self.error and not self.sanitizer

    def check(self) -> "Report":
        """Raise EmulatorError unless the call was clean."""
        if not self.clean:
            lines = [line[:160] for line in self.sanitizer.splitlines()[:60]]
            raise EmulatorError(
                "\n".join([f"code {self.code}: {self.error or 'no report'}", *lines])
            )
        return self


class Struct:
    """A C structure passed by pointer.

    Args:
        layout: a ctypes.Structure class; its pointer fields are c_void_p.
        fields: numbers, arrays or None, by field name.
    """

    def __init__(self, layout: type[ctypes.Structure], **fields):
        self.value = layout()
        self.memory = ctypes.addressof(self.value), ctypes.sizeof(self.value)
        self.pointers = []  # (offset, array, offset in the array)
        for name, value in fields.items():
            if is_array(value):
                self.pointers.append((getattr(layout, name).offset, value, 0))
            elif value is not None:
                setattr(self.value, name, value)


class Raw:
    """A C structure as bytes, with pointers at known offsets.

    Args:
        data: the bytes, a numpy array.
        pointers: (offset in data, array, offset in the array), all in bytes.
    """

    def __init__(self, data: np.ndarray, pointers: Sequence[tuple[int, np.ndarray, int]]):
        self.value, self.pointers, self.memory = data, pointers, memory_of(data)


def is_array(value) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of all-ones bits: NaN in every floating type, -1 in the signed ones."""
    x = torch.empty(*shape, dtype=dtype)
    if x.numel():
        x.view(-1).view(torch.uint8).fill_(255)
    return x


def memory_of(array) -> tuple[int, int]:
    """Address and bytes of a contiguous array."""
    if isinstance(array, torch.Tensor):
        if not array.is_contiguous():
            raise ValueError("an array passed to a launcher must be contiguous")
        return array.data_ptr(), array.numel() * array.element_size()
    if not array.flags["C_CONTIGUOUS"]:
        raise ValueError("an array passed to a launcher must be contiguous")
    return array.ctypes.data, array.nbytes


class _Pairs:
    """The arguments of one call in the form of emu_run.h."""

    def __init__(self, arguments: Sequence):
        self.buffers: list[tuple[int, int]] = []  # address, bytes
        self.pointers: list[tuple[int, ...]] = []  # buffer, offset, target, offset there
        self.arguments = [self.convert(a) for a in arguments]  # kind, value

    def buffer(self, address: int, size: int) -> int:
        if (address, size) not in self.buffers:
            for other, other_size in self.buffers:
                if address < other + other_size and other < address + size:
                    raise ValueError("two arrays overlap without being the same")
            self.buffers.append((address, size))
        return self.buffers.index((address, size))

    def convert(self, value) -> tuple[int, int]:
        if value is None:
            return 0, 0
        if is_array(value):
            address, size = memory_of(value)
            return 1, self.buffer(address, size)
        if isinstance(value, Struct | Raw):
            own = self.buffer(*value.memory)
            for offset, array, inside in value.pointers:
                self.pointers.append((own, offset, self.buffer(*memory_of(array)), inside))
            return 1, own
        if isinstance(value, ctypes.c_float):
            return 2, struct.unpack("<Q", struct.pack("<fI", value.value, 0))[0]
        if isinstance(value, (float, ctypes.c_double)):
            number = value if isinstance(value, float) else value.value
            return 2, struct.unpack("<Q", struct.pack("<d", number))[0]
        number = value.value if hasattr(value, "value") else int(value)
        return 0, number & (2**64 - 1)

    def flat(self, rows) -> ctypes.Array:
        numbers = [n for row in rows for n in row]
        return (ctypes.c_uint64 * max(1, len(numbers)))(*numbers)


class Library:
    """Launchers compiled for the emulator.

    Args:
        path: the shared library, or with a sanitizer the program.
        sanitizer: None, "address" or "thread".
    """

    def __init__(self, path: Path, sanitizer: str | None):
        self.path, self.sanitizer = path, sanitizer
        if sanitizer is None:
            self.functions = ctypes.CDLL(str(path))
            self.functions.emu_error.restype = ctypes.c_char_p
            self.functions.emu_switches.restype = ctypes.c_uint64
            self.functions.emu_allocation.restype = ctypes.c_uint64

    def run(self, name: str, *arguments, schedule: str = "round robin", seed: int = 1) -> Report:
        """Call a launcher.

        Args:
            name: its symbol.
            arguments: arrays, `Struct`, None (a null pointer), ints, ctypes.c_float, and
                floats, which become doubles.
            schedule: one of SCHEDULES.
            seed: of the shuffled schedule.
        """
        call = _Pairs(arguments)
        if self.sanitizer is not None:
            return self._run_program(name, call, SCHEDULES.index(schedule), seed)
        library = self.functions
        start = time.perf_counter()
        code = library.emu_run(
            getattr(library, name),
            call.flat(call.buffers),
            len(call.buffers),
            call.flat(call.pointers),
            len(call.pointers),
            call.flat(call.arguments),
            len(call.arguments),
            SCHEDULES.index(schedule),
            seed,
        )
        seconds = time.perf_counter() - start
        return Report(code, library.emu_error().decode(), "", library.emu_switches(), seconds)

    def _run_program(self, name: str, call: _Pairs, schedule: int, seed: int) -> Report:
        def array(data: bytes, count: int) -> bytes:
            return struct.pack("<Q", count) + data

        case = array(name.encode(), len(name)) + struct.pack("<QQ", schedule, seed)
        case += struct.pack("<Q", len(call.buffers))
        case += b"".join(array(ctypes.string_at(a, n) if n else b"", n) for a, n in call.buffers)
        case += b"".join(
            array(struct.pack(f"<{sum(map(len, rows))}Q", *(n for r in rows for n in r)), len(rows))
            for rows in (call.pointers, call.arguments)
        )
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "TSAN_OPTIONS": "report_signal_unsafe=0:history_size=4:exitcode=0",
        }
        # The race checker wants its address space where it expects it.
        prefix = ["setarch", platform.machine(), "-R"] if self.sanitizer == "thread" else []
        with tempfile.TemporaryDirectory() as folder:
            case_file, result_file = Path(folder, "case"), Path(folder, "result")
            case_file.write_bytes(case)
            start = time.perf_counter()
            done = subprocess.run(
                [*prefix, str(self.path), str(case_file), str(result_file)],
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
            )
            seconds = time.perf_counter() - start
            if not result_file.exists():
                return Report(
                    -1, f"the program ended with {done.returncode}", done.stderr, 0, seconds
                )
            result = result_file.read_bytes()
        code, length, switches = struct.unpack_from("<qQQ", result)
        offset = 24 + length
        for address, size in call.buffers:
            ctypes.memmove(address, result[offset : offset + size], size)
            offset += size
        return Report(code, result[24 : 24 + length].decode(), done.stderr, switches, seconds)


def cuda_home() -> Path:
    """The toolkit whose headers (not its compiler) the emulator needs."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (home / "include" / "cuda_fp16.h").exists():
        raise RuntimeError(f"the emulator needs the CUDA toolkit's headers; CUDA_HOME is {home}")
    return home


def compiler() -> list[str]:
    """$CXX or g++, through ccache where it is installed."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which("ccache") and Path(command[0]).name != "ccache":
        command = ["ccache", *command]
    return command


def op_flags(library: str) -> list[str]:
    """What a source of ops is compiled with: torch's stable ABI, in `torch.ops.<library>`."""
    include = Path(torch.__file__).parent / "include"
    return [
        *(f"-DSK_LIBRARY={library}", "-fvisibility=hidden"),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", f"-isystem{include}"),
        f"-isystem{sysconfig.get_paths()['include']}",
    ]


def torch_libraries() -> list[str]:
    """What a library of ops is linked with."""
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


def _headers(tree: Path = ROOT) -> bytes:
    files = [*HERE.glob("*.h"), *TOYS_FOLDER.glob("*.h")]
    for place in ("*.h", "cells/*.h", "cuda/**/*.h"):
        files += tree.glob(f"csrc/{place}")
    return b"".join(f.read_bytes() for f in sorted(files))


def _make(command: list[str], output: Path, wait: bool = True) -> None:
    """Run a compiler unless its output is there; only one process at a time makes it.

    Args:
        command: the compiler and its arguments, without the output.
        output: what it writes.
        wait: for another process that makes it, or leave it to that one.
    """
    if output.exists():
        return
    locks = output.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / output.name, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if output.exists():
            return
        # Written elsewhere and then moved: a run that is stopped leaves no half of it.
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            part = Path(folder, output.name)
            line = [*command, "-o", str(part)]
            done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                raise EmulatorError(f"{shlex.join(command)}\n{done.stderr[-6000:]}")
            part.replace(output)


def compile_objects(jobs: Sequence[tuple[Path | units.Unit, list[str], bytes]]) -> list[Path]:
    """Objects of sources, as many at a time as there are processors.

    Args:
        jobs: (source or unit of csrc, flags, content of the headers that it includes beside those
            next to it).
    """
    made = []
    for source, flags, headers in jobs:
        if isinstance(source, units.Unit):
            source, flags = source.path, [*flags, *source.flags]
        beside = b"".join(h.read_bytes() for h in sorted(source.parent.glob("*.h")))
        content = repr(flags).encode() + source.read_bytes() + headers + beside
        output = CACHE / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:20]}.o"
        made.append(([*compiler(), *flags, "-x", "c++", "-c", str(source)], output))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # First what no other process is at, then the rest: two processes share the work.
        for wait in (False, True):
            list(pool.map(lambda command: _make(*command, wait=wait), made))  # noqa: B023
    return [output for _, output in made]


def link(objects: Sequence[Path], name: str, suffix: str, flags: Sequence[str]) -> Path:
    """Link objects into `name-KEY` + suffix, or find it in build/emulator."""
    key = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:20]
    output = CACHE / f"{name}-{key}{suffix}"
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    _make([*cxx, *map(str, objects), *flags], output)
    return output


def build(
    sources: Sequence[Path | str | units.Unit],
    *,
    defines: Sequence[str] = (),
    sanitizer: str | None = None,
    tree: Path = ROOT,
) -> Library:
    """Compile .cu files and the emulator into a library, or find it in build/emulator.

    Args:
        sources: .cu files, relative to the repository, or units of csrc.
        defines: preprocessor definitions such as "BUG=1", for the .cu files alone.
        sanitizer: None; "address" for out-of-bounds and undefined behaviour; "thread" for races.
        tree: the folder whose csrc the .cu files include; an altered copy, for instance.
    """
    core_flags, instrument = SANITIZERS[sanitizer]

    def includes(tree: Path) -> list[str]:
        folders = (HERE, tree / "csrc", cuda_home() / "include")
        return [f"-I{p}" for p in folders]

    flags = [*FLAGS, *core_flags, *includes(tree), *instrument, *(f"-D{d}" for d in defines)]
    core_flags = [*CORE_FLAGS, *core_flags, *includes(ROOT)]
    core = [*CORE, "emu_main"] if sanitizer else CORE
    found = [s if isinstance(s, units.Unit) else ROOT / s for s in sources]
    jobs = [(source, flags, _headers(tree)) for source in found]
    jobs += [(HERE / f"{name}.cpp", core_flags, _headers()) for name in core]
    # -Bsymbolic: the emulator's own cudaMemsetAsync, not that of a CUDA build of torch.
    kind = [*instrument, "-rdynamic", "-ldl"] if sanitizer else ["-shared", "-Wl,-Bsymbolic"]
    name, suffix = ("program", "") if sanitizer else ("library", ".so")
    return Library(link(compile_objects(jobs), name, suffix, kind), sanitizer)
