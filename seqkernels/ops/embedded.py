"""The layer op over embedded symbols: the vocabulary is projected once, not the input of every step.

Where V symbols fill many more than V places, weight_ih E + bias of the whole embedding E [V, I] is a
table of gates [V, G*H] that costs V/(T*N) of projecting the input. Its rows are gathered by symbol,
and the backward adds the gates' gradients up by symbol before any product. It is the same function as
the layer on `F.embedding(tokens, E)`, summed in another order.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cells import CELLS, CellSpec
from .layer import second_order
from .registry import get
from .sequence import run_backward, save_flags
from .weights import bias_grads, fold_bias, weight_hh_grad

# By cell: (tokens, embedding, padding_idx, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths,
# reverse) to the results of the sequence op. Eager training on the CPU only.
EMBEDDED: dict[str, Callable] = {}


def _define(spec: CellSpec) -> None:
    class EmbeddedLayer(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx, tokens, embedding, padding_idx, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0,
            lengths, reverse,
        ):  # fmt: skip
            bias_x, bias_h = fold_bias(spec, bias_ih, bias_hh)
            gates_x = F.embedding(tokens, F.linear(embedding, weight_ih, bias_x))
            with torch._C._AutoDispatchBelowAutograd():
                output = get(f"{spec.name}_sequence")(
                    gates_x, weight_hh, bias_h, h_0, c_0, lengths, None, None, reverse, True
                )
            save_flags(ctx, f"{spec.name}_layer", spec, True, output)
            tensors = (tokens, embedding, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths)
            ctx.save_for_backward(*tensors, output[0], *output[3:])
            ctx.padding_idx, ctx.reverse = padding_idx, reverse
            return output

        @staticmethod
        def backward(ctx, *grads):
            tokens, embedding, *weights, h_0, c_0, lengths = ctx.saved_tensors[:9]
            results = ctx.saved_tensors[9:]
            layout = (lengths, None, None, ctx.reverse)
            if torch.is_grad_enabled():
                x = F.embedding(tokens, embedding, ctx.padding_idx)
                found = second_order(spec, (x, *weights, h_0, c_0), layout, grads)
                grad_embedding = None
                if x.requires_grad:
                    (grad_embedding,) = torch.autograd.grad(
                        x, embedding, found[0], create_graph=True
                    )
                return (None, grad_embedding, None, *found[1:], None, None)
            return (None, *_first_order(ctx, embedding, tokens, weights, (h_0, c_0), results, grads))

    def _first_order(ctx, embedding: Tensor, tokens: Tensor, weights, state, results, grads):
        weight_ih, weight_hh, bias_ih, _ = weights
        h_0, c_0 = state
        layout = (ctx.saved_tensors[8], None, None, ctx.reverse)
        need = ctx.needs_input_grad
        with torch._C._AutoDispatchBelowAutograd():
            grad_gates, grad_h, grad_h_0, grad_c_0 = run_backward(
                f"{spec.name}_sequence", spec, grads, weight_hh, h_0, c_0, results, layout
            )
            grad_table = torch.ops.aten.embedding_dense_backward(
                grad_gates, tokens, embedding.shape[0], -1, False
            )
            grad_embedding = grad_bias_ih = grad_bias_hh = None
            if need[1]:
                grad_embedding = grad_table @ weight_ih
                if ctx.padding_idx is not None:
                    grad_embedding[ctx.padding_idx] = 0
            if bias_ih is not None and (need[5] or need[6]):
                grad_bias_ih, grad_bias_hh = bias_grads(spec, grad_table, grad_h)
            output, _, saved = results
            return (
                grad_embedding,
                None,
                grad_table.t() @ embedding if need[3] else None,
                weight_hh_grad(spec, grad_gates, grad_h, saved, h_0, output, *layout)
                if need[4]
                else None,
                grad_bias_ih if need[5] else None,
                grad_bias_hh if need[6] else None,
                grad_h_0 if need[7] else None,
                grad_c_0 if need[8] else None,
                None,
                None,
            )

    EMBEDDED[spec.name] = EmbeddedLayer.apply


for _spec in CELLS.values():
    _define(_spec)
