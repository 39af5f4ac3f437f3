"""The measuring kernels of bench/gpu/*.cu: what is built of them, and calls of their launchers.

On a GPU a library is a file that `make gpu-build` has made in build/gpu. In a rehearsal the same
source runs on the emulator, whose folder tests/emulator/rehearsal.py has put on the path.
"""

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"


@dataclass(frozen=True)
class Source:
    """A .cu file of bench/gpu, and the preprocessor definitions that make one library of it."""

    file: str
    defines: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return ROOT / "bench" / "gpu" / self.file


SOURCES = {
    "micro": Source("micro.cu"),
    "where_whole": Source("where.cu", ("SK_VARIANT=Whole",)),
    "where_without_product": Source("where.cu", ("SK_VARIANT=WithoutProduct",)),
    "where_without_pointwise": Source("where.cu", ("SK_VARIANT=WithoutPointwise",)),
    "where_without_memory": Source("where.cu", ("SK_VARIANT=WithoutMemory",)),
    "where_without_exchange": Source("where.cu", ("SK_VARIANT=WithoutExchange",)),
    "where_stamped": Source("where.cu", ("SK_VARIANT=Stamped",)),
}

# What says that the device cannot hold a launch, and other errors by their names.
REFUSALS = {
    1: "cudaErrorInvalidValue",
    9: "cudaErrorInvalidConfiguration",
    701: "cudaErrorLaunchOutOfResources",
    720: "cudaErrorCooperativeLaunchTooLarge",
    912: "cudaErrorInvalidClusterSize",
}
ERRORS = REFUSALS | {
    35: "cudaErrorInsufficientDriver",
    98: "cudaErrorInvalidDeviceFunction",
    100: "cudaErrorNoDevice",
    209: "cudaErrorNoKernelImageForDevice",
    700: "cudaErrorIllegalAddress",
    715: "cudaErrorIllegalInstruction",
    719: "cudaErrorLaunchFailure",
}


class LaunchError(RuntimeError):
    """A launcher returned an error.

    Args:
        function: the launcher.
        code: its cudaError_t.

    Attributes:
        refused: the device cannot hold the launch; nothing was started.
    """

    def __init__(self, function: str, code: int):
        super().__init__(f"{function}: {ERRORS.get(code, f'CUDA error {code}')}")
        self.refused = code in REFUSALS


class Library:
    """Launchers of one library.

    Args:
        call: calls a launcher by its name, with a tuple of arguments; returns its cudaError_t.
    """

    def __init__(self, call: Callable[[str, tuple], int]):
        self._call = call

    def run(self, function: str, *arguments) -> None:
        """Call a launcher: an extern "C" function that returns a cudaError_t.

        Args:
            function: its name.
            arguments: tensors become pointers to their data, on the device or on the host; None
                a null pointer; ints and floats (as doubles) themselves.

        Raises:
            LaunchError: it returned an error.
            RuntimeError: in a rehearsal, the emulator found a mistake.
        """
        if code := self._call(function, arguments):
            raise LaunchError(function, code)


@cache
def load(name: str, rehearsal: bool) -> Library:
    """The library `name` of SOURCES, built for the GPU or for the emulator.

    Raises:
        RuntimeError: it has not been built.
    """
    return Library(_emulated(SOURCES[name]) if rehearsal else _carried(FOLDER / f"{name}.so"))


def _carried(path: Path) -> Callable[[str, tuple], int]:
    if not path.exists():
        raise RuntimeError(f"{path.relative_to(ROOT)} is not there: run `make gpu-build`")
    functions = ctypes.CDLL(str(path))
    return lambda function, arguments: getattr(functions, function)(*map(_value, arguments))


def _value(argument):
    """A launcher's argument as ctypes takes it. A 64-bit integer serves every integer parameter."""
    if argument is None:
        return ctypes.c_void_p()
    if hasattr(argument, "data_ptr"):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def _emulated(source: Source) -> Callable[[str, tuple], int]:
    library = importlib.import_module("emulator").build([source.path], defines=source.defines)

    def call(function: str, arguments: tuple) -> int:
        report = library.run(function, *arguments)
        if report.error:
            raise RuntimeError(f"{function}: {report.error}")
        return report.code

    return call
