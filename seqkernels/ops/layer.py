"""The layer ops: input projection and recurrence of one layer in one direction, with gradients.

`<cell>_layer(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
reverse, save, suffix)` runs `<cell>_sequence<suffix>` on weight_ih x + bias; x is [T, N, I], or
packed, [sum(batch_sizes), I]. The projected input, the largest tensor of a layer, is not kept for
the backward: first derivatives do not need it, and second derivatives project again.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import modes, reference
from ..cells import CellSpec
from .gemm import linear, matmul
from .registry import LIBRARY, NAMESPACE, differentiable_grads, get, same_device
from .sequence import fake_sequence, keep, kept, reference_sequence, run_backward
from .weights import bias_grads, fold_bias, rows_product, weight_hh_grad

_SCHEMA = (
    "(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor h_0, "
    "Tensor? c_0, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse, bool save, "
    "str suffix) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor c_sequence, Tensor saved)"
)

# What eager calls use in place of the op, by cell: registered in Python, the op's own way through
# dispatcher and autograd takes 200 us of a training step, as long as a short sequence.
EAGER: dict[str, Callable] = {}


def register_layer(spec: CellSpec) -> None:
    """Define `<cell>_layer` with its kernel, fake and autograd."""
    name = f"{spec.name}_layer"

    # fmt: off
    def forward(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
                reverse, save, suffix):
        # fmt: on
        bias_x, bias_h = fold_bias(spec, bias_ih, bias_hh)
        gates_x = linear(x, weight_ih, bias_x)
        return get(f"{spec.name}_sequence{suffix}")(
            gates_x, weight_hh, bias_h, h_0, c_0, lengths, batch_sizes, reset, reverse, save
        )

    # fmt: off
    def fake(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
             reverse, save, suffix):
        # fmt: on
        tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, reset)
        same_device(*tensors, batch_sizes=batch_sizes)
        return fake_sequence(spec, x.shape[:-1], h_0, save)

    def setup(ctx, inputs, output):
        *tensors, reverse, save, suffix = inputs
        keep(ctx, spec, tensors, output, save)
        ctx.reverse, ctx.suffix = reverse, suffix

    def backward(ctx, *grads):
        tensors, results = kept(ctx)
        x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, *layout = tensors
        layout = (*layout, ctx.reverse)
        if torch.is_grad_enabled():
            inputs = (x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0)
            return (*second_order(spec, inputs, layout, grads), *[None] * 6)
        if not results:
            output, _, _, *others = forward(*tensors, ctx.reverse, True, ctx.suffix)
            results = (output, *others)
        grad_gates, grad_h, grad_h_0, grad_c_0 = run_backward(
            f"{spec.name}_sequence{ctx.suffix}", spec, grads, (weight_hh, bias_hh), h_0, c_0,
            results, layout
        )
        need = ctx.needs_input_grad
        output, _, saved = results
        rows = grad_gates.flatten(0, -2)
        grad_bias_ih = grad_bias_hh = None
        if need[3] or need[4]:
            grad_bias_ih, grad_bias_hh = bias_grads(spec, grad_gates, grad_h)
        return (
            matmul(rows, weight_ih).view(x.shape) if need[0] else None,
            rows_product((rows,), (x.flatten(0, -2),)) if need[1] else None,
            weight_hh_grad(spec, grad_gates, grad_h, saved, h_0, output, *layout)
            if need[2]
            else None,
            grad_bias_ih if need[3] else None,
            grad_bias_hh if need[4] else None,
            grad_h_0 if need[5] else None,
            grad_c_0 if need[6] else None,
            *[None] * 6,
        )

    class Layer(torch.autograd.Function):
        """The op's forward and backward without the way through the dispatcher's Python."""

        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = forward(*inputs)
            *_, batch_sizes, _, _, save, _ = inputs
            setup(ctx, inputs, _writable(spec, output, batch_sizes) if save else output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            if torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch._C._AutoDispatchBelowAutograd():
                return backward(ctx, *grads)

    EAGER[spec.name] = Layer.apply
    LIBRARY.define(name + _SCHEMA)
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY
    )


def _writable(spec: CellSpec, output: tuple[Tensor, ...], batch_sizes: Tensor | None):
    """`output` for the backward, so that the caller may change its own in place.

    torch.nn's layers allow that on a CPU, but for an LSTM that runs on oneDNN. The two share their
    memory until one of them is written to.
    """
    result = output[0]
    taken = result.dtype == torch.float32 or (
        result.dtype == torch.bfloat16 and modes.HAS_ONEDNN_BF16
    )
    onednn = spec.name == "lstm" and batch_sizes is None and taken and modes.onednn_enabled()
    if onednn or not result.is_cpu or type(result) is not Tensor:
        return output
    return (torch._lazy_clone(result), *output[1:])


def second_order(spec, inputs, layout, grads):
    """Differentiable gradients of (x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0)."""
    x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0 = inputs
    gates_x = F.linear(x, weight_ih, bias_ih)
    state = reference.split_state(spec, h_0, c_0)
    output, final, c_sequence = reference_sequence(
        spec, gates_x, weight_hh, bias_hh, state, *layout
    )
    if spec.states == 1:
        return differentiable_grads((output, final[0]), grads[:2], inputs)
    results = (output, final[0], reference.others(final), c_sequence)
    return differentiable_grads(results, grads[:4], inputs)
