"""Random command lines and damaged checkpoints: status 0 or 2, a sentence, never a traceback."""

import copy
import json
import math
import os
import random
import re
from types import SimpleNamespace

import pytest
import torch
from g2p_runs import edit, make_trainer, write_checkpoint
from promptly import promptly
from tiers import first_of

from seqkernels.g2p import G2PError, checkpoint, main, pronounce, train
from seqkernels.g2p import run as run_module
from seqkernels.g2p.cli import build_parser
from seqkernels.g2p.schema import SCHEMA
from seqkernels.g2p.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")
CALLS = 100  # of one test

COUNTS = ("1", "2", "8", "0", "-1", "2.5", "nan", "", "x", str(2**40), str(2**70), "9" * 5000)
FILES = ("a", "b", "./a", "list", "link") * 3
FILES += ("a/b", "folder", "", "x" * 300, "/proc/self/x", "a\0b", "\udcff")
OPTIONS = {
    "--minutes": (*COUNTS, "inf", "1e-3", "1e-320", "1e308"),
    "--seed": COUNTS,
    "--cell": ("lstm", "gru", "rnn", ""),
    "--hidden": COUNTS,
    "--layers": COUNTS,
    "--models": COUNTS,
    "--attention": ("general", "dot", "additive", "none", "hard"),
    "--backend": ("torch", "reference", "abacus", ""),
    "--device": ("cpu", "cuda", "cuda:99", "meta", "cpu:1", "", "abacus"),
    "--beam": COUNTS,
    "--test-words": FILES,
    "--words": ("60", "30", *COUNTS),
    "--json": FILES,
    "--checkpoint": FILES,
    "--plot": FILES,
    "--resume": (None,),
    "--compare": (None,),
    "--say": ("fine", "", "\udcff", "naïve"),
    "--help": (None,),
    "nothing": (None,),
}


FILE_OPTIONS = ("--json", "--checkpoint", "--plot", "--test-words")
BEGIN = "the training would begin here"
# Of each option what a training can begin with, where that is not all of its pool.
POSSIBLE = {
    "--minutes": {"1", "2", "8", "2.5", "1e-3"},
    "--seed": {"1", "2", "8", "0"},
    "--cell": {"lstm", "gru"},
    "--hidden": {"2", "8"},
    "--layers": {"1", "2", "8"},
    "--models": {"1", "2", "8"},
    "--attention": {"general", "dot", "additive", "none"},
    "--backend": {"torch", "reference"},
    "--device": {"cpu", "cpu:1"},
    "--beam": {"1", "2", "8"},
    "--words": {"60", "30", "8", str(2**40)},
    "--test-words": {"list", "link"},
    "--json": {"a", "b", "./a", "list", "link"},
    "--checkpoint": {"a", "b", "./a", "list", "link"},
    "--plot": {"a", "b", "./a", "list", "link"},
}


def assert_possible(arguments):
    """A training begins where every option can be, and no two of them name one file."""
    given = dict(zip(arguments, [*arguments[1:], None], strict=True))
    for name in given.keys() & POSSIBLE.keys():
        assert given[name] in POSSIBLE[name], (name, arguments)
    files = [given[name] for name in FILE_OPTIONS if name in given]
    assert len({os.path.realpath(path) for path in files}) == len(files), arguments


def status(arguments, capsys):
    """What a command line ends with; it must be told in a sentence where that is not 0."""
    try:
        with promptly():
            code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in err, (arguments, out, err)
    if code == 2:
        assert len(err.strip()) > 20, (arguments, err)
    elif "--say" in arguments and "--help" not in arguments:
        assert re.search(r"fine .* \d+\.\d %", out), (arguments, out)
    if BEGIN in err:
        assert_possible(arguments)
    return code


@pytest.fixture
def command_lines(tmp_path, monkeypatch, capsys):
    """Calls some; a training would only begin."""

    def enough(*_, **__):
        raise G2PError(BEGIN)

    monkeypatch.setattr(Trainer, "run", enough)
    monkeypatch.setattr(run_module, "affordable_epochs", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").write_text("hello\n")
    (tmp_path / "link").symlink_to("list")

    def call(seed):
        draw = random.Random(seed)
        for _ in range(CALLS):
            arguments = ["--words", "60"]
            names = draw.choice((list(OPTIONS), list(FILE_OPTIONS)))
            for name in draw.sample(names, draw.randint(0, 4)):
                value = draw.choice(OPTIONS[name])
                arguments += [name] if value is None else [name, value]
            status(arguments, capsys)

    return call


@pytest.mark.exhaustive
def test_every_value_alone_works_or_is_refused(command_lines, capsys):
    for name, values in OPTIONS.items():
        for value in dict.fromkeys(values):
            status(["--words", "60", name, *([] if value is None else [value])], capsys)


@pytest.mark.parametrize("chunk", first_of(range(4)))
def test_command_lines_work_or_say_why_not(chunk, command_lines, tmp_path):
    command_lines(chunk)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "list"]
    tiny = torch.tensor(1e-40)
    assert tiny * 1.0 > 0, "denormals are numbers again"


VALUES = (None, True, 0, -1, 2, 1.5, 2**40, 2**70, 10**400, math.nan, math.inf, "", "gru", "\ud800",
          [], [1], ["a"], ["a", "a"], [[1, 2]], [[None]], {}, {"a": 1})  # fmt: skip


COUNTED = (0, -1, 7, 10**6, 2**40)


def may_be(value, was):
    """Whether a value is of the kind that was there; which of them fit is not known here."""
    if type(value) in (int, float) and type(was) in (int, float):
        return 0 <= value <= 2**53 and (type(was) is float or type(value) is int)
    if isinstance(value, list) and isinstance(was, list) and value and was:
        return may_be(value[0], was[0])
    return type(value) is type(was)


def damage(draw, description, tensors):
    """Change some values of a checkpoint, or none; returns whether it must be refused."""
    before, wrong = copy.deepcopy(description), False
    for _ in range(draw.choice((0, 1, 1, 2))):
        part = draw.choice(sorted(description))
        if draw.random() < 0.1:
            description[part] = draw.choice(VALUES)
        elif isinstance(description[part], dict) and description[part]:
            name = draw.choice([*sorted(description[part]), "other"])
            if draw.random() < 0.2:
                description[part].pop(name, None)
            else:
                numbers = type(description[part].get(name)) is int and draw.random() < 0.5
                description[part][name] = draw.choice(COUNTED if numbers else VALUES)
    for part, fields in before.items():
        after = description[part]
        alike = isinstance(after, dict) and after.keys() == fields.keys()
        wrong |= not (alike and all(may_be(after[name], fields[name]) for name in fields))
    for _ in range(draw.choice((0, 0, 1))):
        name = draw.choice(sorted(tensors))
        value = tensors.pop(name)
        others = (value.double(), value.bool(), value.bfloat16(), value[:0], value.flatten())
        filled = torch.full_like(value, draw.choice((math.nan, math.inf, 1e38)))
        changed = draw.choice((*others, value.t().contiguous(), filled, filled, filled))
        own = "optimizer" + name.removeprefix("model")
        step, moment = f"{own}.step", f"{own}.exp_avg"
        alike = changed.dtype == value.dtype and changed.shape == value.shape
        wrong |= not (alike and changed.isfinite().all())
        kept = {name: value}
        instead = (
            {},
            {name: changed},
            kept | {step: changed.clone()},
            kept | {moment: changed.clone()},
        )
        instead = draw.choice(instead)
        tensors |= instead
        wrong |= name not in instead or step in instead
    return bool(wrong)


def spoilt(draw, text):
    """A text without one of its characters, or cut off there, with or without another end."""
    place = draw.randrange(len(text))
    return text[:place] + draw.choice(("", '"', "}", "[", "0", "\\", text[place + 1 :]))


def in_order(content):
    """A checkpoint with sorted metadata: safetensors writes it in another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_damaged(chunk, path, dictionary, capsys):
    draw = random.Random(chunk)
    write_checkpoint(path, dictionary)
    content = in_order(path.read_bytes())
    seen = set()
    for call in range(CALLS):
        path.write_bytes(content)
        wrong = []
        if call % 12 == 1:
            edit(path, lambda d, t: None, lambda fields: spoilt(draw, json.dumps(fields)))
        elif call % 2:
            edit(path, lambda d, t, wrong=wrong: wrong.append(damage(draw, d, t)))
        else:
            changed = bytearray(content[: draw.choice((None, None, draw.randrange(len(content))))])
            # Half of the time in the header, where the description is.
            end = draw.choice((len(changed), min(len(changed), 3000)))
            for _ in range(draw.choice((0, 1, 4))):
                changed[draw.randrange(end)] = draw.randrange(256)
            path.write_bytes(changed)
        arguments = ["--checkpoint", str(path), "--say", "fine"]
        seen.add(code := status(arguments, capsys))
        assert code == 2 or wrong != [True], f"call {call} of {chunk} reads a damaged checkpoint"
    assert seen == {0, 2}


@pytest.mark.parametrize("chunk", first_of(range(6)))
def test_damaged_checkpoints_work_or_say_why_not(chunk, tmp_path, dictionary, capsys):
    read_damaged(chunk, tmp_path / "model.safetensors", dictionary, capsys)


def use_lost(seed, dictionary):
    """A model with numbers that are none, or huge, says so at once, in a training and outside."""
    draw = random.Random(seed)
    trainer, symbols, _ = make_trainer(dictionary)
    weight = draw.choice(list(trainer.model.parameters())).detach().view(-1)
    begin, count = draw.randrange(len(weight)), draw.choice((1, len(weight)))
    weight[begin : begin + count] = draw.choice((math.nan, math.inf, -math.inf, 1e30))
    words, beam = list(dictionary)[:5], draw.choice((1, 4))
    try:
        answers = pronounce(trainer.model, symbols, words, beam=beam, best=beam)
        assert all(0 < answer.probability <= 1 for word in answers for answer in word)
        assert all(answers)
    except G2PError as error:
        assert "not finite" in str(error)
    steps = iter(range(3))
    try:
        progress = trainer.run(lambda: None, interrupted=lambda: next(steps) == 2)
        assert math.isfinite(progress.loss[-1][1])
    except G2PError as error:
        assert "diverged" in str(error)


@pytest.mark.parametrize("seed", first_of(range(20)))
def test_lost_weights_give_numbers_or_a_sentence(seed, dictionary):
    use_lost(seed, dictionary)


def anything(*_, **__):
    """In the place of a check, or of a rule, which it meets."""
    return True


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["_check_finite", "_check_kinds"])
def test_a_checkpoint_unchecked_is_found(name, tmp_path, dictionary, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, name, anything)
    with pytest.raises((AssertionError, RuntimeError)):
        for chunk in range(6):
            read_damaged(chunk, tmp_path / "model.safetensors", dictionary, capsys)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", SCHEMA)
def test_a_description_unchecked_is_found(part, tmp_path, dictionary, capsys, monkeypatch):
    rules = {name: (expected, anything) for name, (expected, _) in SCHEMA[part].items()}
    monkeypatch.setitem(SCHEMA, part, rules)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        for chunk in range(6):
            read_damaged(chunk, tmp_path / "model.safetensors", dictionary, capsys)


@pytest.mark.exhaustive
def test_paths_unchecked_are_found(command_lines, monkeypatch):
    monkeypatch.setattr(run_module, "_check_paths", anything)
    with pytest.raises(AssertionError):
        command_lines(0)


@pytest.mark.exhaustive
def test_a_loss_unchecked_is_found(dictionary, monkeypatch):
    monkeypatch.setattr(train, "math", SimpleNamespace(isfinite=anything))
    with pytest.raises(AssertionError):
        for seed in range(40):
            use_lost(seed, dictionary)


def test_every_option_is_fuzzed():
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert known - {"-h"} == set(OPTIONS) - {"nothing"}
