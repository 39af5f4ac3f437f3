"""Triton's interpreter made fit for these tests. Import it before anything that imports Triton.

Mends what the interpreter gets wrong, gives every tensor a guard page, runs in float64 what kernels
compute in float32, and can run the programs of a grid at the same time, each in a process of its
own.
"""

import contextlib
import ctypes
import inspect
import mmap
import os
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS / "cells")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from triton.language.semantic import TritonSemantic  # noqa: E402

PAGE = mmap.PAGESIZE
# What a test waits for programs that wait for each other.
DEADLINE_SECONDS = 60

torch.set_num_threads(1)
# Everything uninitialised is NaN.
torch.use_deterministic_algorithms(True)
# Float32 products are float32: the interpreter has no TF32.
torch.backends.cudnn.rnn.fp32_precision = "ieee"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _mend_bfloat16_dot() -> None:
    """The interpreter multiplies the bits of bfloat16 as if they were integers."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(
            (x.data.astype(np.uint32) << 16).view(np.float32), tl.float32
        )

    def mended(self, a, b, d, *rest):
        return create_dot(self, widen(a), widen(b), d, *rest)

    interpreter.InterpreterBuilder.create_dot = mended


def _mend_index() -> None:
    """Triton 3.6 calls int() on an array of one element as a loop bound; numpy 2.4 refuses that."""
    patch_lang_tensor = interpreter._patch_lang_tensor

    def mended(tensor, scope):
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


def _know_builtins() -> None:
    """Every call of a function looks through all of these for what it has to patch."""
    modules = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    known = {
        module: [(n, x) for n, x in inspect.getmembers(module) if tl.core.is_builtin(x)]
        for module in modules
    }
    patch_builtin = interpreter._patch_builtin

    def mended(module, builder, scope):
        if module not in known:
            patch_builtin(module, builder, scope)
            return
        for name, member in known[module]:
            # Within a launch that has patched it there is nothing left to do.
            if getattr(module, name) is member:
                interpreter._patch_attr(module, name, member, builder, scope)

    interpreter._patch_builtin = mended


_mend_bfloat16_dot()
if hasattr(interpreter, "_patch_lang_tensor"):
    _mend_index()
    _know_builtins()


class _Guarded:
    """Memory of an exact size with a page on either side that may not be touched.

    `after` puts the end of the memory at the second page, otherwise its beginning at the first.
    """

    def __init__(self, size: int, after: bool):
        pages = -(-max(size, 1) // PAGE)
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for page in (0, pages + 1):
            if _libc.mprotect(start + page * PAGE, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.offset = (pages + 1) * PAGE - size if after else PAGE

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        flat = torch.frombuffer(self._map, dtype=like.dtype, count=like.numel(), offset=self.offset)
        return flat.copy_(like.reshape(-1)).view(like.shape)


def _placed(place, args_dev, kwargs):
    """Arguments of a launch with every tensor put somewhere else by `place`."""

    def move(x):
        return place(x) if isinstance(x, torch.Tensor) and x.numel() > 0 else x

    return [move(x) for x in args_dev], {name: move(x) for name, x in kwargs.items()}


def _copy_back(self, args_dev, args_hst, kwargs, kwargs_hst):
    for ours, theirs in zip(args_dev, args_hst, strict=True):
        if isinstance(ours, torch.Tensor):
            ours.copy_(theirs)


@contextlib.contextmanager
def guard_pages(after: bool):
    """Give every tensor of a launch a guard page: touching what lies beyond ends the process."""
    executor = interpreter.GridExecutor
    kept = executor._init_args_hst, executor._restore_args_dev
    maps = []

    def place(x: torch.Tensor) -> torch.Tensor:
        maps.append(_Guarded(x.numel() * x.element_size(), after))
        return maps[-1].tensor(x)

    executor._init_args_hst = lambda self, args, kwargs: _placed(place, args, kwargs)
    executor._restore_args_dev = _copy_back
    try:
        yield
    finally:
        executor._init_args_hst, executor._restore_args_dev = kept


class _Float64(TorchFunctionMode):
    """Calls of torch with float64 in place of float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if x is torch.float32 else x for x in args]
        kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()}
        return function(*args, **kwargs)


class _Language:
    """triton.language with float64 in place of float32."""

    float32 = tl.float64

    def __getattr__(self, name):
        return getattr(tl, name)


@contextlib.contextmanager
def in_float64(*modules):
    """Compute and carry in float64 what these modules' kernels and launches do in float32."""
    dot = TritonSemantic.dot

    def mended(self, a, b, total, precision, imprecise, dtype):
        return dot(self, a, b, total, precision, imprecise, total.dtype)

    with contextlib.ExitStack() as stack, _Float64():
        for module in modules:
            # The interpreter looks for triton.language among a kernel's globals.
            names = {"tl": _Language(), "_language": tl}
            stack.enter_context(mock.patch.multiple(module, create=True, **names))
        stack.enter_context(mock.patch.object(TritonSemantic, "dot", mended))
        yield


@contextlib.contextmanager
def programs_at_once(first: int = 0):
    """Run the programs of every launch at the same time, each in a process of its own.

    The programs share the tensors. Program `first` starts at once, the others one after another.

    Raises (inside):
        TimeoutError: some program did not end: they wait for each other for ever.
    """
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    call, init, restore = executor.__call__, executor._init_args_hst, executor._restore_args_dev

    def child(self, program, turn, args, kwargs):
        executor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
        executor._restore_args_dev = lambda *_: None

        def set_index(self, x, y, z):
            self.grid_idx = (program, y, z)

        builder.set_grid_idx = set_index
        self.grid = (1,)
        time.sleep(0.05 * turn)
        call(self, *args, **kwargs)

    def launch(self, *args, **kwargs):
        shared, shared_kwargs = _placed(lambda x: x.clone().share_memory_(), args, kwargs)
        (programs,) = self.grid
        children = []
        for turn in range(programs):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    child(self, (first + turn) % programs, turn, shared, shared_kwargs)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            children.append(pid)
        _wait(children)
        _copy_back(self, args, shared, kwargs, shared_kwargs)

    executor.__call__ = launch
    try:
        yield
    finally:
        executor.__call__, executor._init_args_hst, executor._restore_args_dev = call, init, restore


def _wait(children: list[int]) -> None:
    """Wait for processes; end them all, and raise, if one fails or does not end."""
    waiting, end, failed = set(children), time.monotonic() + DEADLINE_SECONDS, False
    while waiting and not failed and time.monotonic() < end:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                waiting.remove(pid)
                failed |= status != 0
        time.sleep(0.002)
    for pid in waiting:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    if failed:
        raise RuntimeError("a program failed")
    if waiting:
        raise TimeoutError(f"{len(waiting)} of {len(children)} programs did not end")
