"""Fakes and autograd of the sequence ops: the recurrence of one layer in one direction."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..arguments import check_batch_sizes
from ..cells import CellSpec
from .packed import batch_sizes_on, row_lengths
from .registry import (
    LIBRARY,
    NAMESPACE,
    absent,
    differentiable_grads,
    get,
    register_no_derivative,
    same_device,
)
from .weights import bias_grads, weight_hh_grad


def _pad(packed: Tensor, batch_sizes: Tensor) -> Tensor:
    """[sum(batch_sizes), X] to [T, N, X], zeros past each row's end."""
    sizes = batch_sizes.tolist()
    return torch.stack([F.pad(s, (0, 0, 0, sizes[0] - s.shape[0])) for s in packed.split(sizes)])


def _unpad(padded: Tensor, batch_sizes: Tensor) -> Tensor:
    """[T, N, X] to [sum(batch_sizes), X]."""
    return torch.cat([padded[t, :n] for t, n in enumerate(batch_sizes.tolist())])


def reference_sequence(
    spec: CellSpec,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    state: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, reference.State, Tensor | None]:
    """`reference.sequence` that also takes packed input: (output, state, c_sequence or None)."""
    if batch_sizes is not None:
        batch = state[0].shape[0]
        check_batch_sizes(batch_sizes.tolist(), batch, gates_x.shape[0])
        sizes = batch_sizes_on(batch_sizes, batch, gates_x.shape[0], gates_x.device)
        lengths = row_lengths(sizes, batch)
        gates_x = _pad(gates_x, batch_sizes)
    output, state, c_sequence = reference.sequence(
        spec.name,
        gates_x,
        weight_hh,
        bias_hh,
        state,
        lengths=lengths,
        reset=reset,
        reverse=reverse,
    )
    if batch_sizes is not None:
        output = _unpad(output, batch_sizes)
        c_sequence = None if c_sequence is None else _unpad(c_sequence, batch_sizes)
    return output, state, c_sequence


def fake_sequence(spec: CellSpec, rows: Sequence[int], h_0: Tensor, save: bool):
    """Empty results of a sequence op over `rows` (T, N or the packed total) steps."""
    hidden_size = h_0.shape[1]
    others = (spec.states - 1) * hidden_size
    return (
        h_0.new_empty(*rows, hidden_size),
        torch.empty_like(h_0, memory_format=torch.contiguous_format),
        h_0.new_empty(h_0.shape[0], others) if others else absent(h_0),
        h_0.new_empty(*rows, others) if others and save else absent(h_0),
        h_0.new_empty(*rows, spec.saved * hidden_size) if save and spec.saved else absent(h_0),
    )


def keep(ctx, spec: CellSpec, inputs: Sequence[Tensor | None], output, save: bool) -> None:
    """Save what the backward of a sequence or layer op reads: its inputs and, of `output`, results.

    A call without `save` comes from a program that was captured for inference: its results are
    not there, and the backward runs the op again.
    """
    result, h_n, c_n, c_sequence, saved = output
    ctx.mark_non_differentiable(*((c_n, c_sequence, saved) if spec.states == 1 else (saved,)))
    ctx.set_materialize_grads(False)
    ctx.count = len(inputs)
    ctx.save_for_backward(*inputs, *((result, c_sequence, saved) if save else ()))


def kept(ctx) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]:
    """What `keep` has saved: the inputs, and the results (output, c_sequence, saved) or nothing."""
    tensors = ctx.saved_tensors
    return tensors[: ctx.count], tensors[ctx.count :]


def register_sequence(spec: CellSpec, suffix: str) -> None:
    """Register fakes and autograd of `<cell>_sequence<suffix>` and its backward."""
    name = f"{spec.name}_sequence{suffix}"

    def fake(gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes, reset, reverse, save):
        tensors = (gates_x, weight_hh, bias_hh, h_0, c_0, lengths, reset)
        same_device(*tensors, batch_sizes=batch_sizes)
        return fake_sequence(spec, gates_x.shape[:-1], h_0, save)

    # fmt: off
    def fake_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, bias_hh, h_0,
                      c_0, output, c_sequence, saved, lengths, batch_sizes, reset, reverse):
        # fmt: on
        grads = (grad_output, grad_h_n, grad_c_n, grad_c_sequence)
        results = (output, c_sequence, saved)
        tensors = (*grads, weight_hh, bias_hh, h_0, c_0, *results, lengths, reset)
        same_device(*tensors, batch_sizes=batch_sizes)
        rows, hidden_size = output.shape[:-1], output.shape[-1]
        separate = spec.separate_columns * hidden_size
        return (
            output.new_empty(*rows, spec.gates * hidden_size),
            output.new_empty(*rows, separate) if spec.separate_columns else absent(output),
            output.new_empty(h_0.shape),
            absent(output) if c_0 is None else output.new_empty(c_0.shape),
        )

    def setup(ctx, inputs, output):
        *tensors, reverse, save = inputs
        keep(ctx, spec, tensors, output, save)
        ctx.reverse = reverse

    def backward(ctx, *grads):
        inputs, results = kept(ctx)
        gates_x, weight_hh, bias_hh, h_0, c_0, *layout = inputs
        layout = (*layout, ctx.reverse)
        if torch.is_grad_enabled():
            found = _second_order(spec, gates_x, weight_hh, bias_hh, h_0, c_0, layout, grads)
            return (*found, None, None, None, None, None)
        if not results:
            output, _, _, *others = get(name)(*inputs, ctx.reverse, True)
            results = (output, *others)
        grad_x, grad_h, grad_h_0, grad_c_0 = run_backward(
            name, spec, grads, (weight_hh, bias_hh), h_0, c_0, results, layout
        )
        need = ctx.needs_input_grad
        output, _, saved = results
        return (
            grad_x,
            weight_hh_grad(spec, grad_x, grad_h, saved, h_0, output, *layout) if need[1] else None,
            bias_grads(spec, grad_x, grad_h)[1] if need[2] else None,
            grad_h_0 if need[3] else None,
            grad_c_0 if need[4] else None,
            None,
            None,
            None,
            None,
            None,
        )

    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    torch.library.register_fake(f"{NAMESPACE}::{name}_backward", fake_backward, lib=LIBRARY)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY
    )
    register_no_derivative(f"{name}_backward")


def run_backward(name: str, spec: CellSpec, grads, weights, h_0, c_0, results, layout):
    """Call a sequence op's backward: (grad_gates_x, grad_gates_h, grad_h_0, grad_c_0).

    `weights` are weight_hh and bias_hh, of a joint launch a list of each.
    """
    grad_output, grad_h_n, grad_c_n, grad_c_sequence, _ = grads
    if spec.states == 1:
        grad_c_n = grad_c_sequence = None
    return get(f"{name}_backward")(
        grad_output,
        grad_h_n,
        grad_c_n,
        grad_c_sequence,
        *weights,
        h_0,
        c_0,
        *results,
        *layout,
    )


def _second_order(spec, gates_x, weight_hh, bias_hh, h_0, c_0, layout, grads):
    """Differentiable gradients of (gates_x, weight_hh, bias_hh, h_0, c_0)."""
    state = reference.split_state(spec, h_0, c_0)
    output, final, c_sequence = reference_sequence(
        spec, gates_x, weight_hh, bias_hh, state, *layout
    )
    c_n = reference.others(final)
    if c_n is None:
        grads = (*grads[:2], None, None)
    return differentiable_grads(
        (output, final[0], c_n, c_sequence),
        grads[:4],
        (gates_x, weight_hh, bias_hh, h_0, c_0),
    )
