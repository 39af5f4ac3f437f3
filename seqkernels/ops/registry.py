"""The op library that Python defines into, and small helpers of all registrations."""

import torch
from torch import Tensor

NAMESPACE = "seqkernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def get(name: str):
    """The op `seqkernels::<name>`, as a callable without overload resolution."""
    return getattr(torch.ops.seqkernels, name).default


def defined(name: str) -> bool:
    """Whether the op `seqkernels::<name>` exists in this process."""
    return hasattr(torch.ops.seqkernels, name)


def absent(like: Tensor) -> Tensor:
    """A tensor of no elements: what stands for a result that a cell does not have."""
    return like.new_empty(0)


def differentiable_grads(
    outputs: tuple[Tensor | None, ...],
    grads: tuple[Tensor | None, ...],
    inputs: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again; None where an input is absent or needs none."""
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None and g is not None]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    kept, kept_grads = zip(*pairs, strict=True)
    found = iter(
        torch.autograd.grad(kept, wanted, kept_grads, create_graph=True, allow_unused=True)
    )
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def same_device(*tensors: Tensor | None, batch_sizes: Tensor | None = None) -> None:
    """For fakes, which run wherever one tensor has no memory: the others must not have any.

    Args:
        tensors: what an op is given.
        batch_sizes: what lies on the CPU wherever the others are.

    Raises:
        RuntimeError: the tensors are on several devices.
    """
    if batch_sizes is not None and batch_sizes.device.type == "meta":
        tensors = (*tensors, batch_sizes)
    devices = {str(x.device) for x in tensors if x is not None}
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors on one device, got {' and '.join(sorted(devices))}"
        )


def register_no_derivative(name: str) -> None:
    """Say plainly that a backward op, called directly, has no derivative of its own."""

    def setup(ctx, inputs, output):
        pass

    def backward(ctx, *grads):
        raise RuntimeError(
            f"seqkernels::{name} has no derivative; differentiate its forward with "
            "create_graph=True"
        )

    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY
    )
