"""The only place that chooses a backend.

The first of `backend.BACKENDS` that can run a call is taken. A backend that the user names and
that cannot run raises with its reason: nothing falls back silently.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from . import _extension
from .backend import BACKENDS, DTYPES, Backend, Call, Joined, onednn_preferred, triton_waits

_BY_NAME = {backend.name: backend for backend in BACKENDS}


class _Thread(threading.local):
    """What a thread has chosen, and where it keeps the calls that `explain` asks about."""

    # Attributes of the object: torch.compile does not guard those of the class.
    def __init__(self):
        self.selected: str | None = None
        self.record: list[tuple[Call, str | None]] | None = None


_thread = _Thread()


def backends() -> dict[str, str]:
    """Every backend and what it is, in the order in which they are tried."""
    return {backend.name: backend.summary for backend in BACKENDS}


def named(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


class use_backend:  # noqa: N801
    """Name the backend of every following call of this thread, or of a `with` block.

    Args:
        name: a key of `backends()`, or None to let the dispatcher choose again.

    Raises:
        ValueError: there is no backend of that name.

    Calls that the named backend cannot run raise RuntimeError with the reason.
    """

    def __init__(self, name: str | None):
        if name is not None:
            named(name)
        self._previous, _thread.selected = _thread.selected, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        _thread.selected = self._previous


def selected() -> str | None:
    """The backend that this thread has named with `use_backend`."""
    return _thread.selected


def refusal(backend: Backend, call: Call) -> str | None:
    """Why `backend` cannot run `call`, or None if it can."""
    if backend.devices and call.device.type not in backend.devices:
        return f"it runs on {' and '.join(backend.devices)}, the input is on {call.device.type}"
    return backend.can_run(call)


def choose(call: Call, name: str | None = None) -> Backend:
    """The backend that runs `call`: the named one, or the first that can.

    Raises:
        ValueError: `name` is not a backend.
        RuntimeError: the named backend cannot run this call; the message says why.
    """
    name = name or _thread.selected
    if _thread.record is not None:
        _thread.record.append((call, name))
    return _choose(call, name)


# How csrc/cuda/launch.h says that the driver does not take a launch that was planned.
_REFUSED = "the driver refuses its launch"


def again_if_refused(run: Callable):
    """The result of `run`, which chooses a backend and calls it.

    A launch that the driver refuses is remembered. So `run` is called a second time, and chooses
    another backend, or raises with the reason where the user has named the one that is refused.
    """
    if torch.compiler.is_compiling():
        return run()
    try:
        return run()
    except RuntimeError as error:
        if _REFUSED not in str(error):
            raise
    return run()


def may_join(device: torch.device) -> bool:
    """Whether asking `join` can be worth the time: some backend there joins."""
    return any(b.joins and device.type in b.devices for b in BACKENDS)


def join(call: Call, name: str | None = None) -> Joined | str:
    """What runs the directions or layers of `call` in one launch, or why nothing does.

    They share a launch where the backend that would run each of them alone can also run them
    together. The backward of layers may take a launch for each where the forward shares one.

    Raises:
        ValueError, RuntimeError: as `choose` for one of them alone.
    """
    name = name or _thread.selected
    backend = _choose(call._replace(directions=1, layers=1), name)
    if not backend.joins:
        return f"{backend.name} has no launch for more than one"
    reason = refusal(backend, call)
    if reason is not None and call.training and call.layers > 1:
        call = call._replace(backward_apart=reason)
        reason = refusal(backend, call)
    if reason is not None:
        return reason
    if _thread.record is not None:
        _thread.record.append((call, backend.name))
    return Joined(backend, call.backward_apart)


def _choose(call: Call, name: str | None) -> Backend:
    if name is not None:
        backend = named(name)
        reason = refusal(backend, call)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run this call: {reason}")
        return backend
    for backend in _order(call):
        if refusal(backend, call) is None:
            return backend
    raise AssertionError("the reference backend refuses nothing")


def takes_native(x: torch.Tensor) -> bool:
    """A shorter answer than `choose` for the step of a cell: the native kernels take it."""
    return (
        x.is_cpu
        and _thread.selected is None
        and _thread.record is None
        and _extension.C is not None
        and x.dtype in DTYPES
    )


def _order(call: Call) -> Iterator[Backend]:
    if call.device.type == "cpu" and onednn_preferred(call):
        yield _BY_NAME["onednn"]
    waits = False
    for backend in BACKENDS:
        if backend.name == "triton" and triton_waits(call) is not None:
            waits = True
        # oneDNN is tried only where it is known to win.
        elif backend.name != "onednn":
            yield backend
        if backend.name == "stepwise" and waits:
            yield _BY_NAME["triton"]


@contextmanager
def recording() -> Iterator[list[tuple[Call, str | None]]]:
    """Collect every call that `choose` is asked about inside the block, with the name asked for."""
    previous, _thread.record = _thread.record, []
    try:
        yield _thread.record
    finally:
        _thread.record = previous


def explain_call(call: Call, name: str | None = None) -> list[str]:
    """What runs `call` and why no other backend does, a sentence each."""
    sentences = []
    name = name or _thread.selected
    order = [named(name)] if name is not None else list(_order(call))
    for backend in order:
        reason = refusal(backend, call)
        if reason is None:
            sentences.insert(0, f"It runs on {backend.name}: {backend.summary}.")
            waits = triton_waits(call) if name is None and backend.name == "stepwise" else None
            if waits is not None:
                sentences.append(f"triton was not used: {waits}.")
            if call.apart is not None:
                sentences.append(f"It has a launch of its own: {call.apart}.")
            if call.backward_apart is not None:
                reason = call.backward_apart.removeprefix("in the backward, ")
                sentences.append(f"In the backward each layer has a launch of its own: {reason}.")
            break
        if not backend.devices or call.device.type in backend.devices:
            sentences.append(f"{backend.name} was not used: {reason}.")
    return sentences
