"""What would run a module's recurrent layers, and why: nothing is computed to find out."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map, tree_map_only

from . import dispatch


def _describe(call: dispatch.Call) -> str:
    options = [
        name
        for name in ("training", "reverse", "packed", "lengths", "reset", "c_sequence")
        if getattr(call, name)
    ]
    if call.directions > 1:
        options.append("both directions in one launch")
    if call.layers > 1:
        shared = ", forward and backward" if call.training and call.backward_apart is None else ""
        options.append(f"{call.layers} layers in one launch{shared}")
    dtype = str(call.dtype).removeprefix("torch.")
    sizes = f"T={call.steps} N={call.batch} I={call.input_size} H={call.hidden_size}"
    return " ".join([call.cell, sizes, dtype, call.device.type, *options])


def _fake(mode: FakeTensorMode, value):
    """`value` with fake tensors; a packed sequence keeps its batch sizes, which say what is run."""
    if not isinstance(value, PackedSequence):
        return tree_map_only(torch.Tensor, mode.from_tensor, value)
    data, batch_sizes, *order = value
    sizes = mode.fake_tensor_converter.from_real_tensor(mode, batch_sizes, make_constant=True)
    return PackedSequence(
        mode.from_tensor(data), sizes, *tree_map_only(torch.Tensor, mode.from_tensor, order)
    )


def explain(module: nn.Module, *inputs, **keywords) -> str:
    """Say which backend would run each recurrent call of `module(*inputs, **keywords)`.

    The module is run on fake tensors: shapes and devices are followed, nothing is computed. On a
    GPU the first question about a shape tries its launch with a kernel that returns at once. Grad
    mode is the caller's: call it under `torch.no_grad()` to ask about inference.

    Args:
        module: a layer of `seqkernels`, or a model that contains some.
        inputs: the positional arguments of its forward, tensors of the real shapes, or packed.
        keywords: its keyword arguments.

    Returns:
        For every call of a layer in one direction, or of several in one launch, its cell, sizes,
        dtype, device and options; the backend; why each backend tried before it cannot run the
        call; and why directions or layers that could share a launch do not, or not in the backward.

    Raises:
        RuntimeError: a backend that the user has named cannot run a call, or the module does what
            depends on the values of a tensor, such as packing a sequence.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, dispatch.recording() as calls:
        fake_inputs, fake_keywords = tree_map(
            lambda value: _fake(mode, value),
            (inputs, keywords),
            is_leaf=lambda value: isinstance(value, PackedSequence),
        )
        try:
            module(*fake_inputs, **fake_keywords)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise RuntimeError(
                "explain follows shapes alone, and the module reads the values of a tensor "
                f"({error.func}): ask about the layers it calls, with inputs of their shapes"
            ) from error
    if not calls:
        return "no recurrent layer of seqkernels was called"
    return "\n".join(
        f"{_describe(call)}\n  {dispatch.explain_call(call, name)}" for call, name in calls
    )
