"""Record the launches of one build and replay each of them in another, such as a sanitizer's.

    with recorded(library) as launches:
        ...                                        # anything that launches kernels of `library`
    replay(build(sources, sanitizer="thread"), launches[0]).check()

What a kernel can reach is what its arguments point to: every word of them that is an address in
guarded memory becomes a copy of that allocation, as it was before the launch.
"""

import contextlib
import ctypes
import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emulator import Library, Raw, Report

RECORDER = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_uint64),
)


@dataclass(frozen=True)
class Launch:
    """A kernel's launch with the memory it began with."""

    kernel: str  # mangled names
    invoke: str
    numbers: tuple[int, ...]  # grid, block, shared bytes, cluster, cooperative
    arguments: np.ndarray
    buffers: tuple[np.ndarray, ...]
    pointers: tuple[tuple[int, int, int], ...]  # offset in arguments, buffer, offset in it


@functools.cache
def symbols(path: Path) -> dict[str, int]:
    """Address of every function, those of anonymous namespaces too; 0 if not unique."""
    listing = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True)
    found: dict[str, int] = {}
    for line in listing.stdout.splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1] in "tTwW":
            found[parts[2]] = 0 if parts[2] in found else int(parts[0], 16)
    return found


def name_at(path: Path, address: int) -> str:
    for name, value in symbols(path).items():
        if value == address:
            return name
    raise ValueError(f"no function of {path.name} begins at {address:#x}")


@contextlib.contextmanager
def recorded(library: Library) -> Iterator[list[Launch]]:
    """Collect the launches of `library` while the context lasts.

    Args:
        library: built without a sanitizer.
    """
    functions, launches = library.functions, []
    here = ctypes.cast(functions.emu_replay, ctypes.c_void_p).value
    origin = symbols(library.path)["emu_replay"]

    def name(address):
        return name_at(library.path, address - here + origin)

    def record(kernel, invoke, arguments, size, numbers):
        data = np.frombuffer(ctypes.string_at(arguments, size), np.uint8).copy()
        bases, buffers, pointers = [], [], []
        for offset in range(0, size - 7, 8):
            word = int(data[offset : offset + 8].view(np.uint64)[0])
            base = ctypes.c_void_p()
            length = functions.emu_allocation(ctypes.c_void_p(word), ctypes.byref(base))
            if not length:
                continue
            if base.value not in bases:
                bases.append(base.value)
                buffers.append(np.frombuffer(ctypes.string_at(base, length), np.uint8).copy())
            pointers.append((offset, bases.index(base.value), word - base.value))
        launches.append(
            Launch(
                name(kernel),
                name(invoke),
                tuple(numbers[:9]),
                data,
                tuple(buffers),
                tuple(pointers),
            )
        )

    callback = RECORDER(record)
    functions.emu_record(callback)
    try:
        yield launches
    finally:
        functions.emu_record(RECORDER(0))


def replay(library: Library, launch: Launch, **schedule) -> Report:
    """Run a recorded launch in another build of the same kernels.

    Args:
        library: the build.
        launch: what was recorded; its buffers hold the results afterwards.
        schedule: as `Library.run` takes it.
    """
    places = symbols(library.path)
    functions = []
    for name in (launch.kernel, launch.invoke):
        if not places.get(name):
            raise ValueError(f"{library.path.name} has no single function {name}")
        functions.append(places[name] - places["emu_replay"])
    pointers = [(offset, launch.buffers[b], inside) for offset, b, inside in launch.pointers]
    arguments = Raw(launch.arguments, pointers)
    size = launch.arguments.nbytes
    return library.run("emu_replay", *functions, arguments, size, *launch.numbers, **schedule)
