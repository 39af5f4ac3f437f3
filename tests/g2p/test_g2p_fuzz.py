"""Random command lines and damaged checkpoints: status 0 or 2, a sentence, never a traceback."""

import math
import random

import pytest
import torch
from g2p_runs import edit, write_checkpoint
from tiers import first_of

from seqkernels.g2p import G2PError, main
from seqkernels.g2p import run as run_module
from seqkernels.g2p.cli import build_parser
from seqkernels.g2p.train import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")
CALLS = 100  # of one test

COUNTS = ("1", "2", "8", "0", "-1", "2.5", "nan", "", "x", str(2**40), str(2**70), "9" * 5000)
FILES = ("a", "b", "a/b", "folder", "", "x" * 300, "/proc/self/x", "a\0b", "./a", "\udcff", "list")
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


def status(arguments, capsys):
    """What a command line ends with; it must be told in a sentence where that is not 0."""
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code in (0, 2) and "Traceback" not in err, (arguments, out, err)
    if code == 2:
        assert len(err.strip()) > 20, (arguments, err)
    return code


@pytest.mark.parametrize("chunk", first_of(range(4)))
def test_command_lines_work_or_say_why_not(chunk, tmp_path, monkeypatch, capsys):
    def enough(*_, **__):
        raise G2PError("the training would begin here")

    monkeypatch.setattr(Trainer, "run", enough)
    monkeypatch.setattr(run_module, "affordable_epochs", lambda *_: 1.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").write_text("hello\n")
    draw = random.Random(chunk)
    for _ in range(CALLS):
        arguments = ["--words", "60"]
        for name in draw.sample(list(OPTIONS), draw.randint(0, 4)):
            value = draw.choice(OPTIONS[name])
            arguments += [name] if value is None else [name, value]
        status(arguments, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "list"]
    tiny = torch.tensor(1e-40)
    assert tiny * 1.0 > 0, "denormals are numbers again"


VALUES = (None, True, 0, -1, 2, 1.5, 2**40, 2**70, 10**400, math.nan, math.inf, "", "gru", "\ud800",
          [], [1], ["a"], ["a", "a"], [[1, 2]], [[None]], {}, {"a": 1})  # fmt: skip


def damage(draw, description, tensors):
    """Change some values of a checkpoint, or none."""
    for _ in range(draw.choice((0, 1, 1, 2))):
        part = draw.choice(list(description))
        if draw.random() < 0.1:
            description[part] = draw.choice(VALUES)
        elif isinstance(description[part], dict) and description[part]:
            name = draw.choice([*description[part], "other"])
            if draw.random() < 0.2:
                description[part].pop(name, None)
            else:
                description[part][name] = draw.choice(VALUES)
    for _ in range(draw.choice((0, 0, 1))):
        name = draw.choice(list(tensors))
        value = tensors.pop(name)
        changed = draw.choice(
            (
                value.double(),
                value.bool(),
                value.bfloat16(),
                value[:0],
                value.flatten(),
                value.t().contiguous(),
                torch.full_like(value, draw.choice((math.nan, math.inf, 1e38))),
            )
        )
        step = "optimizer" + name.removeprefix("model") + ".step"
        tensors |= draw.choice(({}, {name: changed}, {name: value, step: changed.clone()}))


@pytest.mark.parametrize("chunk", first_of(range(6)))
def test_damaged_checkpoints_work_or_say_why_not(chunk, tmp_path, dictionary, capsys):
    path, draw = tmp_path / "model.safetensors", random.Random(chunk)
    write_checkpoint(path, dictionary)
    content = path.read_bytes()
    seen = set()
    for call in range(CALLS):
        path.write_bytes(content)
        if call % 2:
            edit(path, lambda d, t: damage(draw, d, t))
        else:
            changed = bytearray(content[: draw.choice((None, None, draw.randrange(len(content))))])
            # Half of the time in the header, where the description is.
            end = draw.choice((len(changed), min(len(changed), 3000)))
            for _ in range(draw.choice((0, 1, 4))):
                changed[draw.randrange(end)] = draw.randrange(256)
            path.write_bytes(changed)
        arguments = ["--checkpoint", str(path), "--say", "fine"]
        seen.add(status(arguments, capsys))
    assert seen == {0, 2}


def test_every_option_is_fuzzed():
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert known - {"-h"} == set(OPTIONS) - {"nothing"}
