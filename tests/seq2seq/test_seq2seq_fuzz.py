"""Random arguments, possible and impossible: every call works or says what it does not take."""

import math
import random
from contextlib import contextmanager

import pytest
import torch
from promptly import promptly
from seq2seq_models import small_model
from tiers import first_of
from torch import nn

import seqkernels.seq2seq as package
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
from seqkernels.seq2seq.checks import check_integer

CALLS = 250  # of one test

NOTHINGS = (None, "", "3", b"3", [], {}, (), [2], object(), int, 1j, nn.Linear(1, 1))
NUMBERS = (0, -1, -(2**63), 2**70, 10**400, True, False, 0.0, 2.5, -0.5, math.nan, math.inf)
TENSORS = (torch.tensor(2), torch.tensor(0.5), torch.zeros(2), torch.zeros(0), torch.tensor(True))
HOSTILE = (*NOTHINGS, *NUMBERS, *TENSORS)

SIZE, WIDTH = (9, 9, 9, 5, 1), (8, 8, 8, 3, 1)
CHANCE = (0.0, 0.3, 1.0, 1, 0)
CELL, LIBRARY = ("lstm", "gru", "rnn", "rnn_relu"), ("seqkernels", "torch")
KIND, FLAG = ("dot", "general", "additive"), (True, False)

# Larger sizes than a machine holds are refused by torch, but not as a number of layers.
SIZES = {"input_size": SIZE, "embedding_size": WIDTH, "hidden_size": WIDTH, "num_layers": (1, 2)}
SHARED = SIZES | {
    "cell": CELL,
    "dropout": CHANCE,
    "embedding_dropout": (None, *CHANCE),
    "embedding": (None, None, nn.Embedding(9, 8)),
    "padding_idx": (None, 0),
    "batch_first": FLAG,
    "library": LIBRARY,
}
ENCODER = SHARED | {"bidirectional": FLAG, "reverse_source": FLAG}
DECODER = SHARED | {
    "output_size": (None, *SIZE),
    "attention": (None, *KIND),
    "memory_size": (None, *WIDTH),
    "input_feeding": (False, False, True),
    "output_dropout": (None, *CHANCE),
    "tied_output": (False, False, True),
}


def count(v):
    return type(v) is int and 1 <= v < 2**63 or isinstance(v, torch.Tensor)


def chance(v):
    return isinstance(v, (int, float, torch.Tensor)) and not isinstance(v, bool) and 0 <= v <= 1


def number(v):
    return type(v) in (int, float) and abs(v) < 1e300 or isinstance(v, torch.Tensor)


def symbol(v):
    return v is None or type(v) is int and 0 <= v < 9 or isinstance(v, torch.Tensor)


def flag(v):
    return not isinstance(v, torch.Tensor) and v in (True, False)


def one_of(*names):
    return lambda v: v is None or isinstance(v, str) and v in names


# What a call that works was given, by the argument's name: said anew, not asked of the package.
POSSIBLE = dict.fromkeys((*SIZES, "query_size", "num_return_sequences"), count)
POSSIBLE |= dict.fromkeys(
    ("output_size", "memory_size", "max_length"), lambda v: v is None or count(v)
)
POSSIBLE |= dict.fromkeys(("dropout", "p", "floor"), chance)
POSSIBLE |= dict.fromkeys(("embedding_dropout", "output_dropout"), lambda v: v is None or chance(v))
POSSIBLE |= dict.fromkeys(("rate", "length_penalty"), number)
POSSIBLE |= dict.fromkeys(("padding_idx", "bos_idx", "eos_idx"), symbol)
POSSIBLE |= dict.fromkeys(
    ("batch_first", "bidirectional", "reverse_source", "input_feeding", "tied_output"), flag
)
POSSIBLE |= {
    "cell": one_of(*CELL),
    "library": one_of(*LIBRARY),
    "strategy": one_of("greedy", "beam"),
}
POSSIBLE |= dict.fromkeys(("attention", "kind"), one_of(*KIND))
POSSIBLE["step"] = lambda v: type(v) is int and v >= 0 or isinstance(v, torch.Tensor)
POSSIBLE["embedding"] = lambda v: v is None or isinstance(v, nn.Embedding)


def ids(*shape, most=9, dtype=torch.int64):
    return torch.randint(1, most, shape).to(dtype)


def batches():
    """Sources or targets, four steps of three rows in either layout."""
    return [ids(4, 3), ids(4, 3).int(), ids(4, 3, most=5), ids(3, 3)]


BAD_LENGTHS = (torch.tensor([3, 0, 2]), torch.tensor([3, 1, 9]))


def no_batches():
    good = ids(4, 3)
    changed = [good + 9, -good, good[0], good[0, 0], good[None], good[:0], good[:, :0], good.bool()]
    changed += [good.to(kind) for kind in (torch.int8, torch.uint16, torch.float32, torch.cfloat)]
    return [*changed, good.to_sparse(), good.to("meta"), good.tolist(), *HOSTILE]


class Caller:
    """Draws arguments, mostly possible ones, and judges calls."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.worked = self.refused = 0

    def options(self, pools, hostile=HOSTILE):
        """A value of each pool; of some of them none of it, of some another value altogether."""
        chosen = {name: self.draw.choice(pool) for name, pool in pools.items()}
        for name in self.draw.sample(list(pools), self.draw.choice((0, 0, 0, 1, 2))):
            if name in SIZES or self.draw.random() < 0.7:
                chosen[name] = self.draw.choice(self.draw.choice((hostile, NUMBERS)))
            else:
                del chosen[name]
        return chosen

    def of(self, good, hostile=HOSTILE):
        """One of the good values, now and then one of the others."""
        return self.draw.choice(good if self.draw.random() < 0.9 else hostile)

    def call(self, function, *arguments, **options):
        """The result, or None where the call is refused as it may be."""
        said = f"{type(function).__name__} {arguments} {options}"
        try:
            with promptly():
                result = function(*arguments, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            assert len(str(error)) > 10, said
            self.refused += 1
            return None
        except IndexError as error:
            assert "outside the vocabulary" in str(error), said
            self.refused += 1
            return None
        except BaseException as error:
            raise AssertionError(said) from error
        for name, value in options.items():
            assert POSSIBLE.get(name, lambda v: True)(value), f"{name} was taken: {said}"
        self.worked += 1
        return result


@pytest.fixture
def unchanged():
    """What calls of modules leave alone."""

    def state():
        autocast = torch.is_autocast_enabled("cpu")
        return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), autocast

    before = state()
    yield
    assert state() == before


def model_options(caller):
    """Encoder and decoder that may fit together."""
    encoder, decoder = caller.options(ENCODER), caller.options(DECODER)
    if caller.draw.random() < 0.8:
        for name in ("cell", "num_layers", "batch_first", "hidden_size"):
            decoder[name] = encoder.get(name, decoder.get(name))
        if encoder.get("bidirectional") is True and isinstance(encoder.get("hidden_size"), int):
            decoder["memory_size"] = 2 * encoder["hidden_size"]
        elif decoder.get("attention") is not None:
            decoder["memory_size"] = None
    return encoder, decoder


def one_construction(caller):
    kind = caller.draw.randrange(6)
    if kind < 3:
        options = model_options(caller)
        encoder, decoder = caller.call(Encoder, **options[0]), caller.call(Decoder, **options[1])
        if kind == 1:
            caller.call(Bridge, encoder, decoder, caller.of((None, "join", "linear")))
            return
        marks = {name: caller.of((None, 0, 1, 2)) for name in ("bos_idx", "eos_idx")}
        model = caller.call(Seq2Seq, encoder, decoder, **marks)
        if model is not None:
            one_use(caller, model)
    elif kind == 3:
        pools = {"kind": KIND, "query_size": WIDTH, "memory_size": WIDTH, "library": LIBRARY}
        caller.call(Attention, **caller.options(pools))
    elif kind == 4:
        pools = SIZES | {"p": CHANCE, "padding_idx": (None, 0)}
        caller.call(EncoderLSTM, **caller.options(pools))
        caller.call(DecoderLSTM, **caller.options(pools | {"output_size": SIZE}))
    else:
        decay = ("linear", "exponential", "inverse_sigmoid")
        pools = {"step": (0, 10, 10**9), "decay": decay, "rate": (0.5, 1, 10.0), "floor": CHANCE}
        caller.call(teacher_forcing_ratio, **caller.options(pools))
        members = caller.draw.choice(([], [3], 3, [small_model(), None], [small_model()] * 2))
        caller.call(Ensemble, members)


SEARCH = {
    "max_length": (None, 1, 5),
    "strategy": ("greedy", "beam"),
    "beam_size": (1, 4),
    "length_penalty": (0.0, 1, -0.5, 2.0),
    "num_return_sequences": (1, 2),
    "fused": (None, False, True),
}


def assert_fit(lengths, source, batch_first):
    """Lengths that a call took are one for each source, and within it."""
    if lengths is not None:
        rows, steps = source.shape if batch_first else source.shape[::-1]
        assert lengths.shape == (rows,) and lengths.min() >= 1 and lengths.max() <= steps


def one_use(caller, model):
    """A call of a model, which must leave modes, weights and arguments as they are."""
    draw = caller.draw
    for module in model.modules():
        module.training = draw.random() < 0.7
    source, target = (caller.of(batches(), no_batches()) for _ in range(2))
    lengths = caller.of(
        (None, None, torch.tensor([3, 1, 2])), (*BAD_LENGTHS * 8, ids(3), ids(3, 1), *HOSTILE)
    )
    kept = [x.clone() if isinstance(x, torch.Tensor) else x for x in (source, target, lengths)]
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    use = draw.randrange(5)
    seen = []
    hooks = [
        module.register_forward_pre_hook(
            lambda *_: seen.append([m.training for m in model.modules()])
        )
        for module in (model.modules() if draw.random() < 0.3 else ())
    ]
    if use == 0:
        found = caller.call(model, source, target, caller.of((1.0, 0.5, 0.0)))
        for scores in found if isinstance(found, tuple) else () if found is None else (found,):
            assert scores.shape[:2] == target.shape
    elif use == 1:
        if caller.call(model.attention_weights, source, target, lengths) is not None:
            assert_fit(lengths, source, model.batch_first)
    elif use == 2:
        part = model.models[0] if isinstance(model, Ensemble) else model
        if caller.call(part.encoder, source, lengths) is not None:
            assert_fit(lengths, source, part.batch_first)
        h = torch.zeros(part.decoder.num_layers, 3, part.decoder.hidden_size)
        good = [(h, h) if part.decoder.cell == "lstm" else (h,)]
        bad = [(h,), (h, h), h, (h, None), (h[0],), (h.double(), h), *NOTHINGS]
        states = caller.of(good, bad)
        memory = None
        if part.decoder.attention is not None:
            width = part.decoder.attention.memory_size
            memory = caller.call(part.decoder.attention.prepare, torch.zeros(4, 3, width), lengths)
        caller.call(part.decoder, target, states, caller.of([memory], (None, h, 3)))
        caller.call(part.bridge, states)
    else:
        found = caller.call(model.generate, source, lengths, **caller.options(SEARCH))
        if found is not None:
            assert not found.scores.isnan().any()
            assert_fit(lengths, source, model.batch_first)
    for hook in hooks:
        hook.remove()
    # Other threads may train the model while it writes.
    assert all(found == modes for found in seen)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for own, was in zip((source, target, lengths), kept, strict=True):
        if isinstance(own, torch.Tensor) and not own.is_meta and not own.is_sparse:
            assert torch.equal(own, was)


@pytest.mark.parametrize("chunk", first_of(range(4)))
def test_constructors_work_or_say_why_not(chunk, unchanged):
    caller = Caller(chunk)
    while caller.worked + caller.refused < 4 * CALLS:
        one_construction(caller)
    assert min(caller.worked, caller.refused) > CALLS // 5


@pytest.fixture(scope="module")
def models():
    made = [
        small_model(padding_idx=None, dropout=0.3),
        small_model(attention="general", bidirectional=True, layers=2, dropout=0.3),
        small_model(cell="gru", attention="additive", input_feeding=True, batch_first=True),
        small_model(cell="rnn", library="torch", output_size=5),
    ]
    return [*made, Ensemble([small_model(cell="gru"), small_model(attention="dot", layers=2)])]


def unchecked(name, value, *limits):
    return value if name == "output_size" else check_integer(name, value, *limits)


# Faults once found: a check's name, and what leaves it out.
FAULTS = {
    "a dropout of NaN": ("check_probability", lambda name, value: value),
    "half a symbol": ("check_symbol", lambda name, symbol, size: symbol),
    "no outputs": ("check_integer", unchecked),
    "flags": ("check_flag", lambda name, value: value),
}


def fuzz(one_call):
    caller = Caller(0)
    while caller.worked + caller.refused < 4 * CALLS:
        one_call(caller)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_check_left_out_is_found(fault, monkeypatch):
    name, planted = FAULTS[fault]
    for module in (package.decoder, package.dropout, package.encoder, package.model):
        monkeypatch.setattr(module, name, planted, raising=False)
    with pytest.raises(AssertionError):
        fuzz(one_construction)


@contextmanager
def flipped(model):
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


@pytest.mark.exhaustive
def test_a_change_of_modes_is_found(monkeypatch):
    """Also one that is undone before `generate` returns: other threads may train meanwhile."""
    generate = Seq2Seq.generate

    def changing(model, *arguments, **options):
        with flipped(model):
            return generate(model, *arguments, **options)

    monkeypatch.setattr(Seq2Seq, "generate", changing)
    model = small_model(attention="general", dropout=0.3)
    with pytest.raises(AssertionError):
        fuzz(lambda caller: one_use(caller, model))


@pytest.mark.parametrize("chunk", first_of(range(4)))
def test_calls_work_or_say_why_not(chunk, models, unchanged):
    caller = Caller(chunk)
    while caller.worked + caller.refused < CALLS:
        one_use(caller, caller.draw.choice(models))
    assert min(caller.worked, caller.refused) > CALLS // 8
