"""The same layer three times: ours, torch's in the same dtype, and torch's in float64; and runs."""

import contextlib
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from tolerance import assert_parity
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

import seqkernels

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Trio(NamedTuple):
    """Modules of equal parameters."""

    ours: nn.Module
    theirs: nn.Module
    exact: nn.Module


def trio(kind: str, *args, dtype: torch.dtype = torch.float64, **keywords) -> Trio:
    """The class named `kind` of this package and of torch, with torch's random parameters."""
    theirs = getattr(nn, kind)(*args, dtype=dtype, **keywords)
    ours = getattr(seqkernels, kind)(*args, dtype=dtype, **keywords)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return Trio(ours, theirs, copy.deepcopy(theirs).double())


@contextlib.contextmanager
def onednn(enabled: bool):
    """`torch.backends.mkldnn.flags(enabled)`, which warns on a torch without Intel GPUs."""
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def tensors_of(results) -> list[Tensor]:
    """Every tensor of nested results, in order; of a PackedSequence its data."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for result in results for tensor in tensors_of(result)]


def _to_leaf(dtype: torch.dtype) -> Callable:
    def convert(tensor):
        if tensor is None or not tensor.is_floating_point():
            return tensor
        return tensor.detach().to(dtype).requires_grad_()

    return convert


def run(module: nn.Module, dtype: torch.dtype, args: tuple, **keywords) -> dict[str, Tensor]:
    """Results and all gradients of module(*args) with its floating arguments as leaves of `dtype`.

    The loss is a fixed random weighting of every result, so that no two gradients are alike.
    """
    args = tree_map(_to_leaf(dtype), args)
    results = tensors_of(module(*args, **keywords))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(dtype)).sum()
        for r in results
    )
    leaves = {
        f"input {i}": leaf
        for i, leaf in enumerate(tensors_of([a for a in args if a is not None]))
        if leaf.is_floating_point()
    } | dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"result {i}": r.detach() for i, r in enumerate(results)}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


def _run_all(modules: Trio, args: tuple, keywords: dict) -> list[dict[str, Tensor]]:
    dtype = next(modules.ours.parameters()).dtype

    def rounded(tensor):
        return tensor if tensor is None or not tensor.is_floating_point() else tensor.to(dtype)

    # The float64 run sees the inputs as rounded to the dtype under test.
    args = tree_map(rounded, args)
    dtypes = (dtype, dtype, torch.float64)
    return [run(m, d, args, **keywords) for m, d in zip(modules, dtypes, strict=True)]


def assert_same(modules: Trio, *args, **keywords) -> None:
    """Assert the tolerance rule for every result and gradient of the three modules."""
    ours, theirs, exact = _run_all(modules, args, keywords)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert_parity(value, theirs[name], exact[name], name)


def assert_same_over(cases: list[tuple[Trio, tuple]]) -> None:
    """As `assert_same`, of many cases at once: each result of all cases is one tensor to the rule.

    Torch's own error in a tensor of a few elements is a matter of luck; over many it is not.
    """
    found = [_run_all(modules, args, {}) for modules, args in cases]
    for name in found[0][0]:
        ours, theirs, exact = (
            torch.cat([case[i][name].flatten() for case in found]) for i in range(3)
        )
        assert_parity(ours, theirs, exact, name)


def state(
    kind: str,
    batch: tuple[int, ...],
    hidden_size: int,
    *,
    layers: int = 1,
    directions: int = 1,
    proj_size: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """A random initial state for a layer called `kind`; `batch` is (N,), or () if unbatched."""
    rows = layers * directions
    h_0 = torch.randn(rows, *batch, proj_size or hidden_size, dtype=torch.float64)
    if kind != "LSTM":
        return h_0
    return h_0, torch.randn(rows, *batch, hidden_size, dtype=torch.float64)
