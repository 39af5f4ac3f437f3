"""The layer op over embedded symbols: the vocabulary is projected once, not every step's input.

Where V symbols fill many more than V places, weight_ih E + bias of the whole embedding E [V, I] is
a table of gates [V, G*H] that costs V / (T*N) of projecting the input. `<cell>_lookup` takes a
step's gates from there by symbol, and the backward adds the gates' gradients up by symbol before
any product. It is the same function as the layer on `F.embedding(tokens, E)`, summed in another
order.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..cells import CELLS, CellSpec
from .layer import second_order
from .registry import LIBRARY, NAMESPACE, get, register_no_derivative, same_device
from .sequence import fake_sequence, keep, kept, run_backward
from .weights import bias_grads, fold_bias, rows_product, weight_hh_grad

# By cell: (tokens, embedding, padding_idx, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0,
# lengths, reverse) to the results of the sequence op. Eager training on the CPU only.
EMBEDDED: dict[str, Callable] = {}


def register_lookup(spec: CellSpec) -> None:
    """Register the fake of `<cell>_lookup`, which has no derivative of its own."""
    name = f"{spec.name}_lookup"

    def fake(gates, symbols, weight_hh, bias_hh, h_0, c_0, lengths, reverse):
        same_device(gates, symbols, weight_hh, bias_hh, h_0, c_0, lengths)
        return fake_sequence(spec, symbols.shape, h_0, True)

    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    register_no_derivative(name)


def _define(spec: CellSpec) -> None:
    name = f"{spec.name}_sequence"

    class EmbeddedLayer(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx, tokens, embedding, padding_idx, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0,
            lengths, reverse,
        ):  # fmt: skip
            bias_x, bias_h = fold_bias(spec, bias_ih, bias_hh)
            gates = F.linear(embedding, weight_ih, bias_x)
            with torch._C._AutoDispatchBelowAutograd():
                output = get(f"{spec.name}_lookup")(
                    gates, tokens, weight_hh, bias_h, h_0, c_0, lengths, reverse
                )
            weights = (weight_ih, weight_hh, bias_ih, bias_hh)
            keep(ctx, spec, (tokens, embedding, *weights, h_0, c_0, lengths), output, True)
            ctx.padding_idx, ctx.reverse = padding_idx, reverse
            return output

        @staticmethod
        def backward(ctx, *grads):
            (tokens, embedding, *inputs, lengths), results = kept(ctx)
            result, _, saved = results
            layout = (lengths, None, None, ctx.reverse)
            need_embedding, need = ctx.needs_input_grad[1], ctx.needs_input_grad[3:9]
            if torch.is_grad_enabled():
                x = F.embedding(tokens, embedding, ctx.padding_idx)
                grad_x, *found = second_order(spec, (x, *inputs), layout, grads)
                grad_embedding = None
                if need_embedding:
                    (grad_embedding,) = torch.autograd.grad(x, embedding, grad_x, create_graph=True)
                return (None, grad_embedding, None, *found, None, None)
            weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0 = inputs
            with torch._C._AutoDispatchBelowAutograd():
                grad_gates, grad_h, *grad_state = run_backward(
                    name, spec, grads, (weight_hh, bias_hh), h_0, c_0, results, layout
                )
                by_symbol = torch.ops.aten.embedding_dense_backward(
                    grad_gates, tokens, embedding.shape[0], -1, False
                )
                found = [None] * 4
                if need[0]:
                    found[0] = rows_product((by_symbol,), (embedding,))
                if need[1]:
                    found[1] = weight_hh_grad(spec, grad_gates, grad_h, saved, h_0, result, *layout)
                if bias_ih is not None:
                    found[2:] = bias_grads(spec, by_symbol, grad_h)
                grad_embedding = None
                if need_embedding:
                    grad_embedding = by_symbol @ weight_ih
                    if ctx.padding_idx is not None:
                        grad_embedding[ctx.padding_idx] = 0
            wanted = zip((*found, *grad_state), need, strict=True)
            found = (value if asked else None for value, asked in wanted)
            return (None, grad_embedding, None, *found, None, None)

    EMBEDDED[spec.name] = EmbeddedLayer.apply


for _spec in CELLS.values():
    _define(_spec)
