"""The argument checks of the layers and cells, with the exceptions and the wording of `torch.nn`.

Every check runs before any kernel starts, reads only sizes, dtypes and devices (never values, so
nothing synchronises) and puts the offending sizes into the message. Under autocast dtypes are not
compared, because the operation casts what it gets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Not public, but `torch.nn.RNNBase` asks the same; the public query wants a device type.
_autocast = torch._C._is_any_autocast_enabled


def layer_input(x: Tensor, input_size: int, weight: Tensor, packed: bool) -> None:
    """Check the input of a layer: [T, N, I], or the data of a packed sequence, [sum, I]."""
    dims = 2 if packed else 3
    if x.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {x.dim()}")
    if x.dtype != weight.dtype and not _autocast():
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.size(-1) != input_size:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {input_size}, got {x.size(-1)} in an input of size {list(x.shape)}"
        )
    if x.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{x.device} and parameter tensor at {weight.device}"
        )


def layer_state(state: Sequence[Tensor], x: Tensor, expected: Sequence[tuple[int, ...]]) -> None:
    """Check the initial state of a layer against the shapes expected of h_0 and c_0."""
    for index, (tensor, shape) in enumerate(zip(state, expected, strict=True)):
        if tuple(tensor.shape) != shape:
            which = f"hidden[{index}]" if len(state) == 2 else "hidden"
            raise RuntimeError(f"Expected {which} size {shape}, got {list(tensor.shape)}")
        if tensor.device != x.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{x.device} and hidden tensor at {tensor.device}"
            )
        if tensor.dtype != x.dtype and not _autocast():
            raise RuntimeError(
                "Input and hidden tensors are not of the same dtype, found input tensor "
                f"{x.dtype} and hidden tensor {tensor.dtype}"
            )


def two_states(hx: object) -> None:
    """Check that the state of an LSTM is a pair (h_0, c_0)."""
    if not isinstance(hx, tuple | list):
        raise TypeError(f"hx must be a tuple (h_0, c_0), not {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")


def state_dims(state: Sequence[Tensor], dims: int) -> None:
    """Check that the state of a layer is batched as its input is, which has `dims` dimensions."""
    if all(tensor.dim() == dims for tensor in state):
        return
    kind = "batched" if dims == 3 else "unbatched"
    if len(state) == 2:
        raise RuntimeError(
            f"For {kind} {dims}-D input, hx and cx should also be {dims}-D but got "
            f"({state[0].dim()}-D, {state[1].dim()}-D) tensors"
        )
    raise RuntimeError(
        f"For {kind} {dims}-D input, hx should also be {dims}-D but got {state[0].dim()}-D tensor"
    )


def lengths(lengths: object, x: Tensor, dims: int) -> None:
    """Check `lengths`: integers [N] on the device of x, [T, N, I]. Their values are not read."""
    if dims != 3:
        raise RuntimeError("lengths needs a batched 3-D input, got an unbatched 2-D one")
    batch_size = x.size(1)
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be a Tensor, not {type(lengths).__name__}")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"lengths must be int64 or int32, got {lengths.dtype}")
    if tuple(lengths.shape) != (batch_size,):
        raise RuntimeError(f"Expected lengths size ({batch_size},), got {list(lengths.shape)}")
    if lengths.device != x.device:
        raise RuntimeError(
            "Input and lengths tensors are not at the same device, found input tensor at "
            f"{x.device} and lengths tensor at {lengths.device}"
        )


def reset(reset: object, x: Tensor) -> None:
    """Check `reset`: bool, one for every row and step, laid out as the input x is."""
    expected = tuple(x.shape[:-1])
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset must be a Tensor, not {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset must be bool, got {reset.dtype}")
    if tuple(reset.shape) != expected:
        raise RuntimeError(f"Expected reset size {expected}, got {list(reset.shape)}")
    if reset.device != x.device:
        raise RuntimeError(
            "Input and reset tensors are not at the same device, found input tensor at "
            f"{x.device} and reset tensor at {reset.device}"
        )


def cell_dims(name: str, which: str, tensor: Tensor) -> None:
    """Check the number of dimensions of what a cell gets: [N, I] or [I], [N, H] or [H]."""
    if tensor.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {tensor.dim()}D instead")


def cell_arguments(
    x: Tensor, state: Sequence[Tensor], input_size: int, hidden_size: int, weight: Tensor
) -> None:
    """Check sizes, dtypes and devices of a cell's batched input [N, I] and state, each [N, H]."""
    batch_size, features = x.shape
    if features != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {features} expected {input_size}"
        )
    dtype, device = weight.dtype, weight.device
    for index, tensor in enumerate(state):
        shape = tensor.shape
        if shape[0] != batch_size or len(shape) != 2:
            raise RuntimeError(
                f"Input batch size {batch_size} doesn't match hidden{index} batch size {shape[0]}: "
                f"input {list(x.shape)}, hidden{index} {list(shape)}"
            )
        if shape[1] != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {shape[1]}, "
                f"expected {hidden_size}"
            )
        if tensor.dtype != dtype or tensor.device != device:
            _same_kind(f"hidden{index}", tensor, weight)
    if x.dtype != dtype or x.device != device:
        _same_kind("input", x, weight)


def _same_kind(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Refuse a tensor of another device than the weights, or, without autocast, another dtype."""
    if tensor.device != weight.device:
        raise RuntimeError(
            f"{name} and weights must be on the same device, got {tensor.device} and "
            f"{weight.device}"
        )
    if not _autocast():
        raise RuntimeError(
            f"{name} and weights must have the same dtype, got {tensor.dtype} and {weight.dtype}"
        )
