"""Every argument of the modules that cannot be is named, with its value."""

import math
import re

import pytest
import torch
from seq2seq_models import random_batch, small_model
from torch import nn

from seqkernels.seq2seq import (
    Attention,
    Bridge,
    Decoder,
    DecoderLSTM,
    Encoder,
    EncoderLSTM,
    Ensemble,
    Seq2Seq,
    teacher_forcing_ratio,
)

SIZES = dict(input_size=9, embedding_size=8, hidden_size=16)
NO_INTEGERS = (True, 0.5, 2.5, "3", [2], math.nan)
NO_SIZES = (0, -1, 2**70)
NO_PROBABILITIES = (math.nan, math.inf, -0.1, 1.5)
NO_NUMBERS = (True, "0.5", [0.5], 1j, torch.zeros(2))

MAKERS = {
    "encoder": (lambda **o: Encoder(**(SIZES | o)), (*SIZES, "num_layers")),
    "decoder": (lambda **o: Decoder(**(SIZES | o)), (*SIZES, "num_layers", "output_size")),
    "attending decoder": (
        lambda **o: Decoder(**(SIZES | o), attention="general"),
        ("hidden_size", "memory_size"),
    ),
    "attention": (
        lambda **o: Attention("general", **(dict(query_size=4, memory_size=5) | o)),
        ("query_size", "memory_size"),
    ),
    "model": (lambda **o: small_model(attention="dot", **o), ("output_size",)),
}
PLACES = [(maker, name) for maker, (_, names) in MAKERS.items() for name in names]


def refused(error, name, value, make):
    with pytest.raises(error, match=f"^{name}: expected .*, got {re.escape(repr(value))}$"):
        make(**{name: value})


@pytest.mark.parametrize(("maker", "name"), PLACES)
def test_sizes(maker, name):
    make, _ = MAKERS[maker]
    for value in NO_INTEGERS:
        refused(TypeError, name, value, make)
    for value in NO_SIZES:
        refused(ValueError, name, value, make)


DROPOUTS = ("dropout", "embedding_dropout", "output_dropout")


@pytest.mark.parametrize(
    ("maker", "name"),
    [*(("decoder", name) for name in DROPOUTS), *(("encoder", name) for name in DROPOUTS[:2])],
)
def test_probabilities(maker, name):
    make, _ = MAKERS[maker]
    for error, values in ((ValueError, NO_PROBABILITIES), (TypeError, NO_NUMBERS)):
        for value in values:
            refused(error, name, value, make)


@pytest.mark.parametrize("make", [EncoderLSTM, lambda *a, p: DecoderLSTM(*a, p, 9)])
def test_the_textbooks_dropout(make):
    for value in NO_PROBABILITIES:
        refused(ValueError, "p", value, lambda p: make(9, 8, 16, 2, p=p))


@pytest.mark.parametrize("maker", ["encoder", "decoder"])
def test_padding(maker):
    make, _ = MAKERS[maker]
    for value in NO_INTEGERS:
        refused(TypeError, "padding_idx", value, make)
    for value in (-1, 9, 2**70):
        refused(ValueError, "padding_idx", value, make)
        with pytest.raises(ValueError, match="padding_idx: expected 0 to 8"):
            make(padding_idx=value, embedding=nn.Embedding(9, 8))


@pytest.mark.parametrize(("name", "size"), [("bos_idx", 9), ("eos_idx", 7)])
def test_special_symbols(name, size):
    encoder, decoder = Encoder(**SIZES), Decoder(**SIZES, output_size=7)
    model = Seq2Seq(encoder, decoder, **{name: size - 1})
    for error, values in ((TypeError, NO_INTEGERS), (ValueError, (-1, size, 2**70))):
        for value in values:
            refused(error, name, value, lambda **o: Seq2Seq(encoder, decoder, **o))
            model.bos_idx = model.eos_idx = 0
            setattr(model, name, value)
            with pytest.raises(error, match=f"^{name}: expected"):
                model.generate(random_batch()[0])


@pytest.mark.parametrize("name", ["max_length", "beam_size", "num_return_sequences"])
def test_numbers_of_a_search(name):
    model, (source, _, _) = small_model(), random_batch()
    for error, values in ((TypeError, NO_INTEGERS), (ValueError, NO_SIZES)):
        for value in values:
            refused(error, name, value, lambda **o: model.generate(source, strategy="beam", **o))


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_length_penalties(strategy):
    model, (source, _, _) = small_model(), random_batch()
    for value in (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, 60.0):
        with pytest.raises(ValueError, match="length_penalty: .* exceeds the range"):
            model.generate(source, strategy=strategy, length_penalty=value)
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match="length_penalty: expected a number, got"):
            model.generate(source, strategy=strategy, length_penalty=value)
    for value in (40.0, -40):
        assert model.generate(source, length_penalty=value).scores.isfinite().all()


def test_the_teacher_forcing_ratio():
    model, (source, target, _) = small_model(), random_batch()
    for error, values in ((ValueError, NO_PROBABILITIES), (TypeError, NO_NUMBERS)):
        for value in values:
            with pytest.raises(error, match="^teacher_forcing_ratio: expected"):
                model(source, target, value)
    bad = [(dict(step=-1), ValueError), (dict(step=0.5), TypeError), (dict(rate="1"), TypeError)]
    bad += [(dict(floor=math.nan), ValueError), (dict(decay=[]), ValueError)]
    bad += [(dict(rate=math.inf, decay=d), ValueError) for d in ("linear", "inverse_sigmoid")]
    for options, error in bad:
        with pytest.raises(error, match=next(iter(options))):
            teacher_forcing_ratio(**(dict(step=1, rate=1.0) | options))


@pytest.mark.parametrize("name", ["cell", "library", "attention"])
def test_names_that_are_no_strings(name):
    for value in ([], {}, 3, "", b"lstm"):
        with pytest.raises(ValueError, match=f"unknown {name} {re.escape(repr(value))}"):
            Decoder(**SIZES, **{name: value})
    with pytest.raises(ValueError, match="unknown library 'jax'"):
        Attention("dot", 4, 4, library="jax")
    for value in ("", [], 0):
        with pytest.raises(ValueError, match="unknown bridge"):
            Bridge(Encoder(**SIZES), Decoder(**SIZES), value)
        with pytest.raises(ValueError, match="unknown strategy"):
            small_model().generate(random_batch()[0], strategy=value)


def test_parts_of_another_kind():
    encoder, decoder = Encoder(**SIZES), Decoder(**SIZES)
    for make in (Seq2Seq, Bridge):
        with pytest.raises(TypeError, match="encoder: expected Encoder, got Decoder"):
            make(decoder, decoder)
        with pytest.raises(TypeError, match="decoder: expected Decoder, got NoneType"):
            make(encoder, None)
    with pytest.raises(TypeError, match=r"models\[1\]: expected Seq2Seq, got Encoder"):
        Ensemble([small_model(), encoder])
    with pytest.raises(TypeError, match="embedding: expected Embedding, got Tensor"):
        Encoder(**SIZES, embedding=torch.zeros(9, 8))
    compiled = Seq2Seq(encoder, decoder)
    Ensemble([torch.compile(compiled, backend="eager"), compiled])


@pytest.mark.parametrize("attention", [None, "general"])
def test_what_a_decoder_is_called_with(attention):
    decoder = Decoder(**SIZES, attention=attention)
    inputs, h = torch.ones(3, 2, dtype=torch.long), torch.zeros(1, 2, 16)
    memory = decoder.attention.prepare(torch.zeros(4, 2, 16)) if attention else None
    assert decoder(inputs, (h, h), memory)[0].shape == (3, 2, 9)
    cases = [
        (TypeError, "inputs", (inputs.tolist(), (h, h))),
        (TypeError, "inputs: expected integer ids, int64 or int32", (inputs.short(), (h, h))),
        (IndexError, "inputs: id 9", (inputs + 8, (h, h))),
        (TypeError, "states: expected a tuple of Tensors, got Tensor", (inputs, h)),
        (ValueError, "states: expected 2 of them, got 1", (inputs, (h,))),
        (ValueError, r"states: expected \[1, N, 16\], got \[1, 2, 15\]", (inputs, (h, h[..., 1:]))),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            decoder(*arguments, memory)
    if attention:
        with pytest.raises(TypeError, match="memory: expected a Memory of `prepare`, got NoneType"):
            decoder(inputs, (h, h))
        with pytest.raises(ValueError, match=r"memory: expected \[S, N, 16\], got \[4, 2, 15\]"):
            decoder.attention.prepare(torch.zeros(4, 2, 15))
        with pytest.raises(TypeError, match="memory: expected a Tensor, got list"):
            decoder.attention.prepare([])


def test_what_a_bridge_and_a_textbook_decoder_are_called_with():
    h = torch.zeros(1, 2, 16)
    with pytest.raises(ValueError, match="states: expected 2 of them, got 3"):
        Bridge(Encoder(**SIZES), Decoder(**SIZES))((h, h, h))
    decoder = DecoderLSTM(9, 8, 16, 1, 0.0, 9)
    with pytest.raises(TypeError, match="x: expected a Tensor of integer ids, got list"):
        decoder([1, 2], h, h)
    with pytest.raises(TypeError, match="hidden_state, cell_state: expected a tuple of Tensors"):
        decoder(torch.tensor([1, 2]), h, None)


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_decoder_that_cannot_read_what_it_writes(ensemble):
    model = small_model(output_size=11)
    source, target, _ = random_batch()
    assert model(source, target).shape[-1] == 11
    whole = Ensemble([model]) if ensemble else model
    for call in (lambda: whole(source, target, 0.5), lambda: whole.generate(source)):
        with pytest.raises(ValueError, match="cannot read what it writes: output_size=11, input_s"):
            call()


@pytest.mark.parametrize("name", ["bidirectional", "reverse_source", "batch_first"])
def test_flags(name):
    for value in (None, "yes", 2, [], torch.zeros(2), nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got "):
            Encoder(**SIZES, **{name: value})
    assert Encoder(**SIZES, **{name: 1}).batch_first is (name == "batch_first")
