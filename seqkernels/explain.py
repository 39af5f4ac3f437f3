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

# What a call has beside its sizes, in words.
_OPTIONS = {
    "training": "training",
    "reverse": "reversed",
    "packed": "packed input",
    "lengths": "lengths",
    "reset": "resets",
    "c_sequence": "cell state of every step",
}


def _describe(call: dispatch.Call) -> str:
    options = [words for name, words in _OPTIONS.items() if getattr(call, name)]
    if call.directions > 1:
        options.append("both directions in one launch")
    if call.layers > 1:
        shared = ", forward and backward" if call.training and call.backward_apart is None else ""
        options.append(f"{call.layers} layers in one launch{shared}")
    dtype = str(call.dtype).removeprefix("torch.")
    sizes = (
        f"{call.steps} steps, batch size {call.batch}, input size {call.input_size}, "
        f"hidden size {call.hidden_size}"
    )
    return ", ".join([f"{call.cell}: {sizes}, {dtype} on {call.device.type}", *options])


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
        A paragraph for every call of a layer in one direction, or of several in one launch. Its
        first line is the call: cell, sizes, dtype, device and options. Then follow, a sentence a
        line, the backend that runs it, why each backend that is tried earlier does not, and why
        directions or layers that could share a launch do not.

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
        "\n  ".join([_describe(call), *dispatch.explain_call(call, name)]) for call, name in calls
    )
