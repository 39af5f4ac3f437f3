"""Small models and tasks that the tests of this folder share."""

import torch
from torch import Tensor

from seqkernels.seq2seq import Decoder, Encoder, Seq2Seq

PAD, BOS, EOS = 0, 1, 2


def small_model(
    *,
    symbols: int = 9,
    hidden: int = 16,
    layers: int = 1,
    cell: str = "lstm",
    bidirectional: bool = False,
    attention: str | None = None,
    bridge: str | None = None,
    padding_idx: int | None = PAD,
    batch_first: bool = False,
    library: str = "seqkernels",
    **decoder_options,
) -> Seq2Seq:
    encoder = Encoder(
        symbols,
        8,
        hidden // 2 if bidirectional else hidden,
        layers,
        cell=cell,
        bidirectional=bidirectional,
        padding_idx=padding_idx,
        batch_first=batch_first,
        library=library,
    )
    decoder = Decoder(
        symbols,
        8,
        hidden,
        layers,
        cell=cell,
        attention=attention,
        memory_size=encoder.output_size,
        padding_idx=padding_idx,
        batch_first=batch_first,
        library=library,
        **decoder_options,
    )
    return Seq2Seq(encoder, decoder, bridge=bridge, bos_idx=BOS, eos_idx=EOS)


def random_batch(
    rows: int = 5, steps: int = 7, symbols: int = 9, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded sources [S, N] of mixed lengths, targets [T, N] that copy them, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    lengths[0] = steps
    source = torch.randint(3, symbols, (steps, rows), generator=generator)
    source[torch.arange(steps).unsqueeze(1) >= lengths] = PAD
    target = torch.full((steps + 2, rows), PAD)
    target[0] = BOS
    target[1 : steps + 1] = source
    target[lengths + 1, torch.arange(rows)] = EOS
    return source, target, lengths
