"""Several recurrences in one launch, input projections included, with gradients.

`<cell>_joined(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
stacked, save, suffix, backward_apart)` takes one weight of each kind per part. The parts are the
two directions of a layer, which run `<cell>_directions<suffix>`; or, `stacked`, layers that feed
one another, which run `<cell>_layers<suffix>`. csrc/ops.cpp describes shapes. Both directions share
their products for the input and its gradient. The backward of stacked layers is one launch, too;
`backward_apart`, it goes from the last to the first, with a launch of
`<cell>_sequence<suffix>_backward` for each and a product between them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..cells import CellSpec
from .gemm import linear, matmul
from .registry import (
    LIBRARY,
    NAMESPACE,
    absent,
    differentiable_grads,
    get,
    register_no_derivative,
    same_device,
)
from .sequence import fake_sequence, reference_sequence, run_backward
from .weights import bias_grads, fold_bias, rows_product, weight_hh_grad

_SCHEMA = (
    "(Tensor x, Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] bias_ih, Tensor[] bias_hh, "
    "Tensor h_0, Tensor? c_0, Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool stacked, "
    "bool save, str suffix, bool backward_apart) -> (Tensor output, Tensor h_n, Tensor c_n, "
    "Tensor c_sequence, Tensor outputs, Tensor c_sequences, Tensor saved)"
)

# What eager calls use in place of the op, by cell, as in layer.py: a function of `Inputs`,
# `Weights`, `stacked`, `suffix` and `backward_apart` that returns the first four results.
EAGER_JOINED: dict[str, Callable] = {}


class Weights(NamedTuple):
    """One tensor per part; no biases are empty lists."""

    ih: list[Tensor]
    hh: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]


class Inputs(NamedTuple):
    """What is not a weight: x [T, N, I] or packed, states [parts, N, H], layout.

    `reset` is [T, N], of directions [2, T, N]: each marks what its own order of the steps meets.
    """

    x: Tensor
    h_0: Tensor
    c_0: Tensor | None
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset: Tensor | None


def _biases(w: Weights, part: int) -> tuple[Tensor | None, Tensor | None]:
    return (w.bias_ih[part], w.bias_hh[part]) if w.bias_ih else (None, None)


def joined_forward(
    spec: CellSpec, inputs: Inputs, w: Weights, stacked: bool, save: bool, suffix: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Results of `<cell>_directions<suffix>` or `<cell>_layers<suffix>`, input projected here."""
    x, *rest = inputs
    if stacked:
        gates_x = linear(x, w.ih[0], _biases(w, 0)[0])
        run = get(f"{spec.name}_layers{suffix}")
        return run(gates_x, w.ih[1:], w.hh, w.bias_ih[1:], w.bias_hh, *rest, save)
    bias_x, bias_h = zip(*(fold_bias(spec, *_biases(w, d)) for d in range(2)), strict=True)
    gates_x = linear(x, torch.cat(w.ih), None if bias_x[0] is None else torch.cat(bias_x))
    bias_h = [b for b in bias_h if b is not None]
    return get(f"{spec.name}_directions{suffix}")(gates_x, w.hh, bias_h, *rest, save)


def _part(x: Tensor | None, part: int) -> Tensor | None:
    """The part of a tensor with a dimension for it; what a cell does not have has none."""
    return x[part] if x is not None and x.dim() > 1 else x


def _own_part(x: Tensor, part: int) -> Tensor:
    """The same memory as `_part`, but no view: users may change it in place."""
    view = _part(x, part)
    return x.new_empty(0).set_(view.untyped_storage(), view.storage_offset(), view.shape)


def _own_layout(layout: Sequence[Tensor | None], direction: int) -> tuple[Tensor | None, ...]:
    """Lengths, batch sizes and resets of one of two directions."""
    lengths, batch_sizes, reset = layout
    return lengths, batch_sizes, None if reset is None else reset[direction]


def _columns(x: Tensor, direction: int) -> Tensor:
    """One direction's half of a tensor whose last dimension holds both."""
    return x.chunk(2, -1)[direction] if x.dim() > 1 else x


def _directions_backward(spec, inputs, w, suffix, results, grads, need_x):
    x, h_0, c_0, *layout = inputs
    name = f"{spec.name}_directions{suffix}"
    output, c_sequence, *_, saved = results
    grad_gates, grad_h, grad_h_0, grad_c_0 = run_backward(
        name,
        spec,
        (*grads[:4], None),
        (w.hh, w.bias_hh),
        h_0,
        c_0,
        (output, c_sequence, saved),
        layout,
    )
    rows = grad_gates.flatten(0, -2)
    found = Weights([], [], [], [])
    found.ih.extend(rows_product((rows,), (x.flatten(0, -2),)).chunk(2))
    for d in range(2):
        own = _columns(grad_gates, d), _columns(grad_h, d)
        states = _columns(saved, d), h_0[d], _columns(output, d)
        found.hh.append(weight_hh_grad(spec, *own, *states, *_own_layout(layout, d), d == 1))
        if w.bias_ih:
            for biases, grad in zip(found[2:], bias_grads(spec, *own), strict=True):
                biases.append(grad)
    grad_x = matmul(rows, torch.cat(w.ih)).view(x.shape) if need_x else None
    return grad_x, grad_h_0, grad_c_0, found


def _layers_backward(spec, inputs, w, suffix, results, grads, need_x):
    """One launch for the gate gradients of all layers."""
    x, h_0, c_0, *layout = inputs
    _, _, outputs, c_sequences, saved = results
    grad_output, grad_h_n, grad_c_n, grad_c_sequence = grads[:4]
    if spec.states == 1:
        grad_c_n = grad_c_sequence = None
    grad_gates, grad_h, grad_h_0, grad_c_0 = get(f"{spec.name}_layers{suffix}_backward")(
        *(grad_output, grad_h_n, grad_c_n, grad_c_sequence),
        *(w.ih[1:], w.hh, w.bias_hh, h_0, c_0, outputs, c_sequences, saved, *layout),
    )
    found = Weights(*([None] * len(w_part) for w_part in w))
    for i in range(len(w.hh)):
        own = _part(grad_gates, i), _part(grad_h, i)
        states = _part(saved, i), h_0[i], outputs[i]
        _layer_weights(spec, found, i, outputs[i - 1] if i else x, own, states, layout)
    grad_x = matmul(grad_gates[0].flatten(0, -2), w.ih[0]).view(x.shape) if need_x else None
    return grad_x, grad_h_0, grad_c_0, found


def _layers_apart_backward(spec, inputs, w, suffix, results, grads, need_x):
    """A launch for each layer, from the last to the first."""
    x, h_0, c_0, *layout = inputs
    last, last_c, outputs, c_sequences, saved = results
    grad_output, grad_h_n, grad_c_n, grad_c_sequence = grads[:4]
    found = Weights(*([None] * len(w_part) for w_part in w))
    grad_states: list = [None] * len(w.hh)
    for i in reversed(range(len(w.hh))):
        top = i == len(w.hh) - 1
        own = (last if top else outputs[i], last_c if top else _part(c_sequences, i))
        own = (*own, _part(saved, i))
        own_grads = (grad_output, _part(grad_h_n, i), _part(grad_c_n, i), grad_c_sequence, None)
        grad_gates, grad_h, *grad_states[i] = run_backward(
            f"{spec.name}_sequence{suffix}",
            spec,
            own_grads,
            (w.hh[i], w.bias_hh[i] if w.bias_hh else None),
            h_0[i],
            _part(c_0, i),
            own,
            (*layout, False),
        )
        below = outputs[i - 1] if i else x
        states = own[2], h_0[i], own[0]
        _layer_weights(spec, found, i, below, (grad_gates, grad_h), states, layout)
        grad_c_sequence, grad_output = None, None
        if i or need_x:
            grad_output = matmul(grad_gates.flatten(0, -2), w.ih[i]).view(below.shape)
    grad_h_0, grad_c_0 = zip(*grad_states, strict=True)
    grad_c_0 = None if c_0 is None else torch.stack(grad_c_0)
    return grad_output, torch.stack(grad_h_0), grad_c_0, found


def _layer_weights(spec, found, i, below, grads, states, layout):
    """Fill in the gradients of layer i's weights from its gate gradients and what it was fed."""
    found.ih[i] = rows_product((grads[0].flatten(0, -2),), (below.flatten(0, -2),))
    found.hh[i] = weight_hh_grad(spec, *grads, *states, *layout, False)
    if found.bias_ih:
        found.bias_ih[i], found.bias_hh[i] = bias_grads(spec, *grads)


def _reference(spec, inputs, w, stacked):
    """(output, h_n, c_n or None, c_sequence or None) of the reference, differentiable."""
    x, h_0, c_0, *layout = inputs
    outputs, finals, c_sequences = [], [], []
    for i, (weight_ih, weight_hh) in enumerate(zip(w.ih, w.hh, strict=True)):
        bias_ih, bias_hh = _biases(w, i)
        state = reference.split_state(spec, h_0[i], None if c_0 is None else c_0[i])
        gates_x = F.linear(outputs[-1] if stacked and i else x, weight_ih, bias_ih)
        own = layout if stacked else _own_layout(layout, i)
        output, final, c_sequence = reference_sequence(
            spec, gates_x, weight_hh, bias_hh, state, *own, not stacked and i == 1
        )
        outputs.append(output)
        finals.append(final)
        c_sequences.append(c_sequence)
    states = [torch.stack(s) for s in zip(*finals, strict=True)]
    if stacked:
        output, c_sequence = outputs[-1], c_sequences[-1]
    else:
        output = torch.cat(outputs, -1)
        c_sequence = None if c_0 is None else torch.cat(c_sequences, -1)
    return output, states[0], reference.others(states), c_sequence


def _backward(spec, inputs, w, how, results, grads, need_x):
    """Gradients (x, h_0, c_0, Weights), by the kernels or, to be differentiated, the reference."""
    stacked, suffix, backward_apart = how
    if not torch.is_grad_enabled():
        run = _directions_backward
        if stacked:
            run = _layers_apart_backward if backward_apart else _layers_backward
        return run(spec, inputs, w, suffix, results, grads, need_x)
    if spec.states == 1:
        grads = (*grads[:2], None, None)
    wanted = (*inputs[:3], *w.ih, *w.hh, *w.bias_ih, *w.bias_hh)
    found = differentiable_grads(_reference(spec, inputs, w, stacked), grads[:4], wanted)
    weights = iter(found[3:])
    return (*found[:3], Weights(*([next(weights) for _ in part] for part in w)))


def register_joined(spec: CellSpec, suffix: str) -> None:
    """Register the fakes of the backend's joined ops."""

    # fmt: off
    def fake_directions(gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes, reset, save):
        # fmt: on
        tensors = (gates_x, *weight_hh, *bias_hh, h_0, c_0, lengths, reset)
        same_device(*tensors, batch_sizes=batch_sizes)
        output, h_n, c_n, c_sequence, saved = fake_sequence(spec, gates_x.shape[:-1], h_0[0], save)
        return (
            torch.cat((output, output), -1),
            torch.empty_like(h_0, memory_format=torch.contiguous_format),
            c_n if c_0 is None else h_0.new_empty(c_0.shape),
            torch.cat((c_sequence, c_sequence), -1) if c_sequence.dim() > 1 else c_sequence,
            torch.cat((saved, saved), -1) if saved.dim() > 1 else saved,
        )

    # fmt: off
    def fake_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, bias_hh, h_0,
                      c_0, output, c_sequence, saved, lengths, batch_sizes, reset):
        # fmt: on
        grads = (grad_output, grad_h_n, grad_c_n, grad_c_sequence)
        results = (output, c_sequence, saved)
        tensors = (*grads, *weight_hh, *bias_hh, h_0, c_0, *results, lengths, reset)
        same_device(*tensors, batch_sizes=batch_sizes)
        rows, width = output.shape[:-1], output.shape[-1]
        return (
            output.new_empty(*rows, spec.gates * width),
            output.new_empty(*rows, spec.separate_columns * width)
            if spec.separate_columns
            else absent(output),
            output.new_empty(h_0.shape),
            absent(output) if c_0 is None else output.new_empty(c_0.shape),
        )

    # fmt: off
    def fake_layers(gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes,
                    reset, save):
        # fmt: on
        weights = (*weight_ih, *weight_hh, *bias_ih, *bias_hh)
        same_device(gates_x, *weights, h_0, c_0, lengths, reset, batch_sizes=batch_sizes)
        return _fake_layers(spec, gates_x.shape[:-1], h_0, save)

    # fmt: off
    def fake_layers_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_ih, weight_hh,
                             bias_hh, h_0, c_0, output, c_sequence, saved, lengths, batch_sizes,
                             reset):
        # fmt: on
        same_device(*weight_ih, h_0)
        return fake_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, bias_hh,
                             h_0, c_0, output, c_sequence, saved, lengths, batch_sizes, reset)

    directions, layers = f"{spec.name}_directions{suffix}", f"{spec.name}_layers{suffix}"
    for name, fake in (
        (directions, fake_directions),
        (f"{directions}_backward", fake_backward),
        (layers, fake_layers),
        (f"{layers}_backward", fake_layers_backward),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        register_no_derivative(name)


def _fake_layers(spec, rows, h_0, save):
    results = fake_sequence(spec, (h_0.shape[0], *rows), h_0[0], save)
    states = [h_0.new_empty(len(h_0), *r.shape) if r.dim() > 1 else r for r in results[1:3]]
    return (results[0], *states, *results[3:])


def register_joined_layer(spec: CellSpec) -> None:
    """Define `<cell>_joined` with its kernel, fake and autograd."""
    name = f"{spec.name}_joined"

    def seven(results, stacked):
        """The op's results from those of the kernels; those of an op share no memory."""
        output, h_n, c_n, c_sequence, saved = results
        if not stacked:
            return output, h_n, c_n, c_sequence, absent(output), absent(output), saved
        last, last_c = (_part(r, -1).clone() for r in (output, c_sequence))
        return last, h_n, c_n, last_c, output, c_sequence, saved

    # fmt: off
    def forward(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
                stacked, save, suffix, backward_apart):
        # fmt: on
        inputs = Inputs(x, h_0, c_0, lengths, batch_sizes, reset)
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh)
        results = joined_forward(spec, inputs, weights, stacked, save, suffix)
        return seven(results, stacked)

    # fmt: off
    def fake(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
             stacked, save, suffix, backward_apart):
        # fmt: on
        weights = (*weight_ih, *weight_hh, *bias_ih, *bias_hh)
        same_device(x, *weights, h_0, c_0, lengths, reset, batch_sizes=batch_sizes)
        if stacked:
            return seven(_fake_layers(spec, x.shape[:-1], h_0, save), True)
        output, _, _, c_sequence, saved = fake_sequence(spec, x.shape[:-1], h_0[0], save)
        output, c_sequence, saved = (
            r.new_empty(*r.shape[:-1], 2 * r.shape[-1]) if r.dim() > 1 else r
            for r in (output, c_sequence, saved)
        )
        c_n = absent(h_0) if c_0 is None else h_0.new_empty(c_0.shape)
        return seven((output, h_0.new_empty(h_0.shape), c_n, c_sequence, saved), False)

    def keep(ctx, inputs, weights, how, results):
        """Save what the backward needs: of the results those it reads.

        They are absent where a program was captured for inference: the backward makes them.
        """
        ctx.set_materialize_grads(False)
        ctx.counts = [len(part) for part in weights]
        ctx.how = how  # stacked, suffix, backward_apart
        ctx.save_for_backward(*inputs, *(t for part in weights for t in part), *results)

    def gradients(ctx, grads, need_x):
        tensors = ctx.saved_tensors  # asked once: hooks may recompute them
        inputs, rest = Inputs(*tensors[:6]), iter(tensors[6:])
        weights = Weights(*([next(rest) for _ in range(n)] for n in ctx.counts))
        results = tuple(rest)
        if not results:
            stacked, suffix, _ = ctx.how
            made = seven(joined_forward(spec, inputs, weights, stacked, True, suffix), stacked)
            results = (made[0], *made[3:])
        return _backward(spec, inputs, weights, ctx.how, results, grads, need_x)

    def setup(ctx, inputs, output):
        x, weight_ih, weight_hh, bias_ih, bias_hh, *rest, stacked, save, suffix, apart = inputs
        ctx.mark_non_differentiable(*(output[4:] if spec.states > 1 else output[2:]))
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh)
        last, _, _, *results = output
        kept = (last, *results) if save else ()
        keep(ctx, Inputs(x, *rest), weights, (stacked, suffix, apart), kept)

    def backward(ctx, *grads):
        need = ctx.needs_input_grad
        grad_x, grad_h_0, grad_c_0, weights = gradients(ctx, grads, need[0])
        if spec.states == 1:
            grad_c_0 = None
        return (grad_x, *weights, grad_h_0, grad_c_0, *[None] * 7)

    class Joined(torch.autograd.Function):
        """The op without the way through the dispatcher's Python; weights come flat."""

        @staticmethod
        def forward(ctx, how, counts, *tensors):
            stacked, suffix, _ = how
            inputs, rest = Inputs(*tensors[:6]), iter(tensors[6:])
            weights = Weights(*([next(rest) for _ in range(n)] for n in counts))
            with torch._C._AutoDispatchBelowAutograd():
                results = joined_forward(spec, inputs, weights, stacked, True, suffix)
                output, h_n, c_n, c_sequence, saved = results
                last, last_c = output, c_sequence
                if stacked:
                    last, last_c = (_own_part(r, -1) for r in (output, c_sequence))
                elif spec.states == 1:
                    last_c = absent(output)
            if spec.states == 1:
                ctx.mark_non_differentiable(c_n, last_c)
            # What was made from the last layer is checked for changes as an output, not as a part.
            keep(ctx, inputs, weights, how, (last, last_c, output, c_sequence, saved))
            return last, h_n, c_n, last_c

        @staticmethod
        def backward(ctx, *grads):
            need = ctx.needs_input_grad[2:]
            if torch.is_grad_enabled():
                found = gradients(ctx, grads, need[0])
            else:
                with torch._C._AutoDispatchBelowAutograd():
                    found = gradients(ctx, grads, need[0])
            *states, weights = found
            if spec.states == 1:
                states[2] = None
            flat = (*states, None, None, None, *(t for part in weights for t in part))
            used = (g if wanted else None for g, wanted in zip(flat, need, strict=True))
            return (None, None, *used)

    def eager(inputs: Inputs, weights: Weights, *how):
        flat = (t for part in weights for t in part)
        return Joined.apply(how, [len(part) for part in weights], *inputs, *flat)

    EAGER_JOINED[spec.name] = eager
    LIBRARY.define(name + _SCHEMA)
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY
    )
