"""Every backend: what it is, and why it cannot run a call.

`dispatch` asks; nothing here chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import _extension, modes


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


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _compiled(call: Call) -> str | None:
    """What every compiled backend asks for."""
    if call.transformed:
        return "vmap, torch.func and forward-mode derivatives run on the reference recurrence"
    if call.dtype not in DTYPES:
        return f"there is no kernel for {call.dtype}"
    return None


def _native(call: Call) -> str | None:
    if _extension.C is None:
        return f"the compiled module is missing: {_extension.REASON}"
    return _compiled(call)


def _onednn(call: Call) -> str | None:
    if not modes.onednn_enabled():
        return "torch.backends.mkldnn is switched off"
    if call.cell != "lstm":
        return "oneDNN is used for LSTM alone"
    if call.training:
        return "it serves inference; training needs saved gates"
    if call.lengths or call.packed or call.reset or call.c_sequence:
        return "oneDNN has no lengths, packed input, resets or cell-state sequence"
    if call.dtype not in (torch.float32, torch.bfloat16):
        return f"oneDNN's LSTM is used for float32 and bfloat16, not {call.dtype}"
    if call.batch == 0 or call.steps == 0:
        return "the batch or the sequence is empty"
    if not modes.HAS_ONEDNN:
        return "this torch was built without oneDNN"
    if call.dtype == torch.bfloat16 and not modes.HAS_ONEDNN_BF16:
        return "this processor has no bfloat16 support that oneDNN uses"
    return _compiled(call)


def onednn_preferred(call: Call) -> bool:
    """Whether oneDNN is known to beat the native kernels: see bench/results.

    An exported program is for every batch, so its symbolic batch is not compared.
    """
    if (
        call.cell != "lstm"
        or call.training
        or isinstance(call.batch, torch.SymInt)
        or modes.captured()
    ):
        return False
    return call.batch > 16 and modes.onednn_enabled()


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
    return _planned(*question(call), _index(call.device))


def question(call: Call) -> tuple:
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


def triton_waits(call: Call) -> str | None:
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
