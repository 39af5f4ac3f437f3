"""What torch's modes ask of a call: transforms, autocast, gradients, capture, oneDNN's switch."""

import torch
from torch import Tensor

# Asked once: torch.compile cannot trace these functions.
HAS_ONEDNN = torch.backends.mkldnn.is_available()
HAS_ONEDNN_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

_Tensors = tuple[Tensor | None, ...]


@torch.compiler.assume_constant_result
def onednn_enabled() -> bool:
    """What `torch.backends.mkldnn.flags` says."""
    return torch.backends.mkldnn.enabled


def transformed(tensors: _Tensors) -> bool:
    """Whether a tensor is under a functorch transform or carries a forward-mode tangent."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(
        t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None
        for t in tensors
    )


def needs_grad(tensors: _Tensors) -> bool:
    """Whether gradients will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def captured() -> bool:
    """Whether what runs is recorded as a program that may be called later with gradients.

    `torch.compile` is not meant: it compiles again for a call that wants gradients.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return torch._C._is_tracing() or torch._C._get_dispatch_mode(proxy) is not None


def readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor are there to be read, without waiting for a device."""
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not captured()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def autocast(device_type: str, tensors: _Tensors) -> _Tensors:
    """Cast to autocast's dtype where autocast is on, as torch.nn's recurrent layers do."""
    if not autocasts(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t.to(dtype) if t is not None and t.dtype in CAST else t for t in tensors)


CAST = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts


def autocasts(device_type: str) -> bool:
    """Whether autocast is on for a kind of device."""
    # The second question raises for devices without autocast, such as meta.
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device_type)


def wide_results(cell: str, state: Tensor, by_steps: bool) -> torch.dtype | None:
    """The dtype of results where autocast gives another than its own; None where it does not.

    On a CPU torch.nn computes a GRU, and an LSTM that oneDNN does not take as a whole, from
    products in autocast's dtype and states in their own, and type promotion gives the wider one.

    Args:
        cell: a key of `CELLS`.
        state: the last state, c or else h, as the caller gave it.
        by_steps: an LSTM's torch.nn twin takes single steps: a cell, or packed input.
    """
    if not state.is_cpu or not autocasts("cpu") or state.dtype not in CAST:
        return None
    if cell.startswith("rnn") or (cell == "lstm" and not by_steps and onednn_enabled()):
        return None
    dtype = torch.get_autocast_dtype("cpu")
    wide = torch.promote_types(state.dtype, dtype)
    return None if wide == dtype else wide
