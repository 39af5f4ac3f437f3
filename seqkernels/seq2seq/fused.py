"""Greedy search of a plain decoder as one op: `seqkernels.decode`."""

import torch
from torch import Tensor

from .. import _extension, decode
from ..nn.base import layer_weights, recurrence
from .decoder import Carry, Decoder
from .layers import CELL_OPTIONS, LIBRARIES, hooked


def refusal(decoder: Decoder, carry: Carry) -> str | None:
    """Why the fused op cannot run this decoder, or None if it can."""
    if not isinstance(decoder, Decoder):
        return "several models write together"
    kind, _ = CELL_OPTIONS[decoder.cell]
    device, dtype = carry.states[0].device, decoder.output.weight.dtype
    if decoder.attention is not None:
        return "the decoder has attention"
    if not isinstance(decoder.rnn, LIBRARIES["seqkernels"][kind]):
        return "the decoder was built from torch.nn"
    if torch.is_autocast_enabled(device.type) or carry.states[0].dtype != dtype:
        return f"the states are {carry.states[0].dtype}, the weights {dtype}"
    if decoder.embedding.max_norm is not None:
        return "the embedding renormalises what it looks up"
    if any(map(hooked, (decoder.embedding, decoder.dropout, decoder.rnn, decoder.output))):
        return "a hook on a part of the decoder would not be called"
    if not _has_kernel(recurrence(decoder.rnn), device.type):
        return f"there is no fused kernel for {device.type}"
    return None


def greedy(
    decoder: Decoder, carry: Carry, *, bos_idx: int, eos_idx: int, padding: int, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [T, N], lengths [N] and log-probabilities [N] of the greedy search."""
    rnn = decoder.rnn
    layers = [layer_weights(rnn, layer) for layer in range(decoder.num_layers)]
    found = decode.greedy(
        recurrence(rnn),
        decoder.embedding.weight,
        layers,
        (decoder.output.weight, decoder.output.bias),
        carry.states,
        bos_idx,
        max_length=max_length,
        eos=eos_idx,
        pad=padding,
        log_probs=True,
    )
    return found.tokens.t()[: int(found.lengths.max())], found.lengths, found.log_probs


def _has_kernel(cell: str, device_type: str) -> bool:
    if _extension.C is None:
        return False
    key = device_type.upper()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"seqkernels::{cell}_greedy", key)
