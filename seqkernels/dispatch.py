"""The only place that chooses a backend.

A backend is a name, the device it runs on, the suffix of its ops and a predicate that says why it
cannot run a call. The first that can is taken. A backend that the user names and that cannot run
raises with its reason: nothing falls back silently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import _extension


class Call(NamedTuple):
    """What a backend needs to know of a call to decide whether it can run it.

    Attributes:
        cell: a key of `CELLS`.
        device: where the input lies.
        dtype: of the input, after autocast.
        steps, batch, hidden_size: T, N, H.
        input_size: I.
        training: gradients will be asked for.
        lengths, packed, reset: whether the call has them.
        transformed: a tensor is under vmap, torch.func or forward-mode differentiation.
        c_sequence: the cell state of every step is asked for.
        reverse: the sequence is run from its end.
        bias: the layer has biases.
        directions: 2 where both directions of a layer are to share a launch.
        layers: more than 1 where layers that feed one another are to share a launch.
        apart: why this layer or direction does not share a launch with others, if it might have.
        backward_apart: why the backward of layers that share a launch has one for each, if so.
    """

    cell: str
    device: torch.device
    dtype: torch.dtype
    steps: int
    batch: int
    hidden_size: int
    input_size: int
    training: bool = False
    lengths: bool = False
    packed: bool = False
    reset: bool = False
    transformed: bool = False
    c_sequence: bool = False
    reverse: bool = False
    bias: bool = True
    directions: int = 1
    layers: int = 1
    apart: str | None = None
    backward_apart: str | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """A schedule that can run one direction of one layer.

    Attributes:
        name: what users call it.
        devices: device types it runs on; empty stands for all.
        suffix: end of its op names; None where it has no sequence op.
        can_run: the reason it cannot run a call, or None.
        summary: one line for `backends()`.
        joins: it has ops for both directions, and for several layers, in one launch; `can_run` then
            answers for such calls, too.
    """

    name: str
    devices: tuple[str, ...]
    suffix: str | None
    can_run: Callable[[Call], str | None]
    summary: str
    joins: bool = False


class Joined(NamedTuple):
    """What runs several directions or layers in one launch.

    Attributes:
        backend: it has ops for them.
        backward_apart: why the backward has a launch for each, or None where it shares one, too.
    """

    backend: Backend
    backward_apart: str | None


_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _compiled(call: Call) -> str | None:
    """What every compiled backend asks for."""
    if call.transformed:
        return "vmap, torch.func and forward-mode derivatives run on the reference recurrence"
    if call.dtype not in _DTYPES:
        return f"there is no kernel for {call.dtype}"
    return None


def _native(call: Call) -> str | None:
    if _extension.C is None:
        return f"the compiled module is missing: {_extension.REASON}"
    return _compiled(call)


# Asked once: torch.compile cannot trace these functions.
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_HAS_ONEDNN_BF16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn(call: Call) -> str | None:
    if call.cell != "lstm":
        return "oneDNN is used for LSTM alone"
    if call.training:
        return "it serves inference; training needs saved gates"
    if call.lengths or call.packed or call.reset or call.c_sequence:
        return "oneDNN has no lengths, packed input, resets or cell-state sequence"
    if call.dtype not in (torch.float32, torch.bfloat16):
        return f"oneDNN's LSTM is used for float32 and bfloat16, not {call.dtype}"
    if call.batch == 0:
        return "the batch is empty"
    if not _HAS_ONEDNN:
        return "this torch was built without oneDNN"
    if call.dtype == torch.bfloat16 and not _HAS_ONEDNN_BF16:
        return "this processor has no bfloat16 support that oneDNN uses"
    return _compiled(call)


def _onednn_preferred(call: Call) -> bool:
    """Whether oneDNN is known to beat the native kernels: see bench/results.

    An exported program is for every batch, so its symbolic batch is not compared.
    """
    if call.cell != "lstm" or call.training or isinstance(call.batch, torch.SymInt):
        return False
    return call.batch > 16


def _stepwise(call: Call) -> str | None:
    if _extension.C is None:
        return f"the compiled module is missing: {_extension.REASON}"
    if not _extension.C.with_cuda:
        return "the extension was compiled without CUDA"
    return _device(_index(call.device)) or _compiled(call)


def _index(device: torch.device) -> int:
    return -1 if device.index is None else device.index


@torch.compiler.assume_constant_result
def _device(index: int) -> str | None:
    """Why no CUDA kernel can run on a device: an old driver, no code for it."""
    return _extension.C.device_refusal(index)


@torch.compiler.assume_constant_result
def _planned(*question) -> str | None:
    """What plan.h says of a call, for torch.compile a constant: it cannot trace the extension."""
    return _extension.C.persistent_refusal(*question)


def _persistent(call: Call) -> str | None:
    reason = _stepwise(call)
    if reason is not None:
        return reason
    if torch.compiler.is_exporting() and isinstance(call.batch, torch.SymInt):
        return "a launch is planned for one batch size, an exported program is for every batch"
    return _planned(*_question(call), _index(call.device))


def _question(call: Call) -> tuple:
    """What launch plans depend on, as `_C.persistent_refusal` takes it, the device left out."""
    return (
        call.cell,
        str(call.dtype).removeprefix("torch."),
        # A program that torch.compile makes for every batch is made again for each: its dynamic
        # sizes become constants where they are counted.
        len(range(call.batch)),
        call.hidden_size,
        call.training,
        call.directions,
        call.layers,
        call.backward_apart is not None,
    )


def _triton(call: Call) -> str | None:
    try:
        from . import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return _compiled(call) or triton.can_run(call)


def _triton_waits(call: Call) -> str | None:
    """Why Triton is tried after `stepwise` for this call, or None."""
    if call.device.type != "cuda" or _triton(call) is not None:
        return None
    from . import triton

    return triton.stands_behind(call)


BACKENDS: tuple[Backend, ...] = (
    Backend("native", ("cpu",), "", _native, "C++ kernels, a whole sequence in one call"),
    Backend(
        "onednn", ("cpu",), None, _onednn, "torch's oneDNN LSTM, for inference of wide batches"
    ),
    Backend(
        "persistent",
        ("cuda",),
        "_persistent",
        _persistent,
        "CUDA kernels that keep the weights on chip",
        joins=True,
    ),
    Backend("triton", ("cuda",), "_triton", _triton, "Triton kernels, no compiler needed"),
    Backend("stepwise", ("cuda",), "", _stepwise, "a product and a cell kernel per step"),
    Backend(
        "reference", (), None, lambda call: None, "plain PyTorch, differentiable in every mode"
    ),
)
_BY_NAME = {backend.name: backend for backend in BACKENDS}

_selected: str | None = None
_record: list[tuple[Call, str | None]] | None = None


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
    """Name the backend of every following call, or of a `with` block.

    Args:
        name: a key of `backends()`, or None to let the dispatcher choose again.

    Raises:
        ValueError: there is no backend of that name.

    Calls that the named backend cannot run raise RuntimeError with the reason.
    """

    def __init__(self, name: str | None):
        global _selected
        if name is not None:
            named(name)
        self._previous, _selected = _selected, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _selected
        _selected = self._previous


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
    name = name or _selected
    if _record is not None:
        _record.append((call, name))
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
    name = name or _selected
    backend = _choose(call._replace(directions=1, layers=1), name)
    if not backend.joins:
        return f"{backend.name} has no launch for more than one"
    reason = refusal(backend, call)
    if reason is not None and call.training and call.layers > 1:
        call = call._replace(backward_apart=reason)
        reason = refusal(backend, call)
    if reason is not None:
        return reason
    if _record is not None:
        _record.append((call, backend.name))
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
        and _selected is None
        and _record is None
        and _extension.C is not None
        and x.dtype in _DTYPES
    )


def _order(call: Call) -> Iterator[Backend]:
    if call.device.type == "cpu" and _onednn_preferred(call):
        yield _BY_NAME["onednn"]
    waits = False
    for backend in BACKENDS:
        if backend.name == "triton" and _triton_waits(call) is not None:
            waits = True
        # oneDNN is tried only where it is known to win.
        elif backend.name != "onednn":
            yield backend
        if backend.name == "stepwise" and waits:
            yield _BY_NAME["triton"]


@contextmanager
def recording() -> Iterator[list[tuple[Call, str | None]]]:
    """Collect every call that `choose` is asked about inside the block, with the name asked for."""
    global _record
    previous, _record = _record, []
    try:
        yield _record
    finally:
        _record = previous


def explain_call(call: Call, name: str | None = None) -> list[str]:
    """What runs `call` and why no other backend does, a sentence each."""
    sentences = []
    name = name or _selected
    order = [named(name)] if name is not None else list(_order(call))
    for backend in order:
        reason = refusal(backend, call)
        if reason is None:
            sentences.insert(0, f"It runs on {backend.name}: {backend.summary}.")
            waits = _triton_waits(call) if name is None and backend.name == "stepwise" else None
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
