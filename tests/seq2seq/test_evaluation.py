"""Writing targets with a model in training mode, while other threads train it."""

import copy
import threading
from types import MethodType

import pytest
import torch
from seq2seq_models import random_batch, small_model
from torch import nn

from seqkernels.seq2seq import Attention, Decoder, Ensemble
from seqkernels.seq2seq.evaluation import evaluated


def modes(model):
    return [module.training for module in model.modules()]


def two_models():
    return Ensemble([small_model(dropout=0.5), small_model(cell="gru", dropout=0.5)])


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
@pytest.mark.parametrize("make", [small_model, two_models])
def test_no_mode_changes_while_a_target_is_written(make, strategy):
    model = make()
    model.encoder.eval()
    before, seen = modes(model), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: seen.append(modes(model)))
    model.generate(random_batch()[0], strategy=strategy, fused=False)
    assert seen and all(found == before for found in seen)


def test_threads_write_while_another_trains():
    model = small_model(attention="general", layers=2, dropout=0.5)
    expected = copy.deepcopy(model).eval().generate(random_batch()[0])
    source, target, _ = random_batch()
    start, ended, faults = threading.Barrier(4), threading.Event(), []

    def write():
        start.wait()
        for _ in range(15):
            found = model.generate(source)
            if not torch.equal(found.tokens, expected.tokens):
                faults.append("tokens")

    def train():
        start.wait()
        while not ended.is_set():
            first, second = model(source, target), model(source, target)
            if torch.equal(first, second):
                faults.append("no dropout")
            if not all(modes(model)):
                faults.append("modes")

    threads = [threading.Thread(target=write) for _ in range(3)]
    trainer = threading.Thread(target=train)
    for thread in (*threads, trainer):
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    trainer.join()
    assert not faults
    assert all(modes(model))


class Noisy(nn.Module):
    """Adds noise in training, by its own reading of its mode, around a dropout of torch's."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"some": nn.Sequential(nn.Dropout(0.5))})
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.parts["some"](self.norm(x.flatten(0, 1)).view_as(x))
        return x + torch.randn_like(x) if self.training else x


class OwnDecoder(Decoder):
    """A user's decoder."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.noisy = Noisy()

    def decode(self, inputs, carry, memory):
        scores, carry, weights = super().decode(inputs, carry, memory)
        wide = torch.cat((scores, scores[..., :7]), -1)
        return scores + self.noisy(wide)[..., :9], carry, weights


def own_decoder():
    model = small_model(dropout=0.5)
    model.decoder = OwnDecoder(9, 8, 16, dropout=0.5, padding_idx=0)
    return model


def own_forward():
    """A forward that was replaced on the instance."""
    model = small_model(attention="dot")
    attention = model.decoder.attention

    def forward(self, query, memory):
        attended, weights = Attention.forward(self, query, memory)
        return nn.functional.dropout(attended, 0.5, self.training), weights

    attention.forward = MethodType(forward, attention)
    return model


def compiled_part(in_place):
    model = small_model(attention="general", dropout=0.5)
    if in_place:
        model.decoder.output_dropout.compile(backend="eager")
    else:
        model.decoder.output_dropout = torch.compile(model.decoder.output_dropout, backend="eager")
    return model


MODELS = {
    "between layers": lambda: small_model(layers=2, dropout=0.5),
    "torch's layers": lambda: small_model(layers=2, dropout=0.5, library="torch"),
    "input feeding": lambda: small_model(attention="dot", input_feeding=True, dropout=0.5),
    "subclass": own_decoder,
    "replaced forward": own_forward,
    "compiled in place": lambda: compiled_part(True),
    "compiled": lambda: compiled_part(False),
    "together": two_models,
}


@pytest.mark.parametrize("name", MODELS)
def test_whatever_reads_its_mode_is_in_evaluation(name):
    model = MODELS[name]()
    source, _, lengths = random_batch(rows=20)
    before = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    found = model.generate(source, lengths, max_length=12)
    again = model.generate(source, lengths, max_length=12)
    assert (modes(model), list(model.state_dict())) == (before[0], list(before[1]))
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    expected = model.eval().generate(source, lengths, max_length=12)
    for result in (found, again):
        assert all(map(torch.equal, result, expected))


def test_hooks_are_called_and_an_exception_leaves_nothing_behind():
    model = small_model(dropout=0.5)
    source, target, _ = random_batch()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}

    def fail(*_):
        raise OSError("from a hook")

    handle = model.decoder.output.register_forward_hook(fail)
    with pytest.raises(OSError, match="from a hook"):
        model.generate(source)
    handle.remove()
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()
    assert not torch.equal(model(source, target), model(source, target)), "dropout is still on"


def test_copies_share_everything_but_the_mode():
    model = small_model(dropout=0.5)
    model.decoder.embedding = model.encoder.embedding
    twin = evaluated(model)
    assert not any(modes(twin)) and all(modes(model))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    for (name, own), (other, given) in zip(
        twin.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == other and own is given
    assert twin.decoder.embedding is twin.encoder.embedding
    assert evaluated(twin) is twin
