"""What the command refuses before it trains, and how it stops when its numbers are lost."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from g2p_runs import QUICK_ARGUMENTS, edit, make_trainer, write_checkpoint

from seqkernels.g2p import G2PError, main, pronounce
from seqkernels.g2p.checkpoint import load_checkpoint, save_checkpoint
from seqkernels.g2p.train import Trainer, score_words

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")
LONG = ["--words", "400", "--hidden", "32", "--models", "1", "--minutes", "5"]


def sentence(arguments, capsys):
    """The one sentence with which the command ends, with status 2."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("g2p: ")
    return err


@pytest.fixture
def untrained(monkeypatch):
    """A training that begins is a failure."""

    def fail(*_):
        raise AssertionError("the training began")

    monkeypatch.setattr(Trainer, "step", fail)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_loss_that_is_not_finite_ends_a_training(value, tmp_path, monkeypatch, capsys):
    steps, step = [], Trainer.step

    def losing(self, *arguments):
        steps.append(step(self, *arguments))
        return steps[-1] * value if len(steps) == 7 else steps[-1]

    monkeypatch.setattr(Trainer, "step", losing)
    path = tmp_path / "model.safetensors"
    error = sentence([*LONG, "--checkpoint", str(path)], capsys)
    assert f"the training has diverged: the loss of step 7 is {value}" in error
    assert len(steps) == 7
    assert not path.exists()


@pytest.mark.parametrize("minutes", ["0.02", "5"])
def test_weights_lost_in_training_are_never_scored_nor_kept(minutes, tmp_path, monkeypatch, capsys):
    path, step = tmp_path / "model.safetensors", Trainer.step

    def losing(self, *arguments):
        loss = step(self, *arguments)
        with torch.no_grad():
            self.model.decoder.rnn.weight_hh_l0.fill_(torch.nan)
        if minutes == "0.02":  # the last step of the budget
            self.progress.seconds = 1e9
            monkeypatch.setattr("seqkernels.g2p.train._Clock.seconds", lambda clock: 1e9)
        return loss

    monkeypatch.setattr(Trainer, "step", losing)
    error = sentence([*LONG, "--minutes", minutes, "--checkpoint", str(path)], capsys)
    assert "not finite" in error or "the loss of step 2 is nan" in error
    assert not path.exists()
    arguments = [*LONG, "--minutes", minutes]
    assert "not finite" in sentence(arguments, capsys) or minutes == "5"


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_of_lost_models_are_an_error(dictionary, value, beam, models):
    trainer, symbols, _ = make_trainer(dictionary, models=models)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name.endswith("decoder.output.weight"):
                parameter.fill_(value)
    words = list(dictionary)[:20]
    with pytest.raises(G2PError, match="the model's probabilities are not finite"):
        score_words(trainer.model, symbols, dictionary, words, beam=beam)
    with pytest.raises(G2PError, match=re.escape(repr(words[0]))):
        pronounce(trainer.model, symbols, [words[0]], beam=beam)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_lost_model_says_nothing_and_says_so(tmp_path, dictionary, value, capsys):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, dictionary)
    edit(path, lambda _, tensors: tensors["model.decoder.output.weight"].fill_(value))
    assert main(["--checkpoint", str(path), "--say", "fine"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "not finite" in err and err.count("\n") == 1


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("first", ["--json", "--checkpoint", "--plot", "--test-words"])
@pytest.mark.parametrize("second", ["--json", "--checkpoint", "--plot"])
def test_two_options_cannot_name_one_file(first, second, tmp_path, monkeypatch, capsys):
    if first == second:
        return
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("hello\n")
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for other in (str(path), "file", "./../" + tmp_path.name + "/file", "link"):
        error = sentence([*LONG, first, str(path), second, other], capsys)
        assert first in error and second in error and "name one file" in error
    assert path.read_text() == "hello\n"


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("option", ["--json", "--checkpoint", "--plot"])
@pytest.mark.parametrize("name", ["x" * 250, "x" * 300, "file/x", "folder"])
def test_files_that_cannot_be_written_are_known_before(option, name, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    assert str(tmp_path / name)[:200] in sentence([*LONG, option, str(tmp_path / name)], capsys)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "sizes", [("--hidden", str(2**40)), ("--layers", str(2**50)), ("--models", str(10**9))]
)
def test_models_that_no_memory_holds_are_refused_with_their_bytes(sizes, capsys):
    arguments = ["--words", "400", *(() if "--models" in sizes else ("--models", "1")), *sizes]
    error = sentence(arguments, capsys)
    assert f"{sizes[0][2:]} {sizes[1]}" in error and " bytes, cpu has " in error


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--seed", value] for value in (str(2**70), str(2**32), "-1", "0.5", "x")),
        *(["--hidden", value] for value in ("0", "-2", "3", "1e3")),
        *(["--minutes", value] for value in ("nan", "inf", "-1", "1e300", "1e-320", "x")),
        *(["--beam", value] for value in ("0", "1001", "x")),
        *(["--layers", value] for value in ("0", "-1", "9" * 5000)),
        *(["--json", value] for value in ("", "a\0b")),
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
def test_arguments_that_cannot_be_are_named_with_their_value(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert f"argument {arguments[0]}: expected" in last and repr(arguments[1])[1:20] in last


def test_a_gpu_that_is_not_there_is_refused(capsys):
    assert "there is no GPU 'cuda:99'" in sentence(
        [*QUICK_ARGUMENTS, "--device", "cuda:99"], capsys
    )


def test_a_checkpoint_survives_what_is_lost_later(tmp_path, dictionary):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, dictionary)
    kept = load_checkpoint(path)
    kept.weights["decoder.output.bias"][0] = torch.nan
    with pytest.raises(G2PError, match="not finite"):
        save_checkpoint(path, kept)
    load_checkpoint(path)


@pytest.mark.exhaustive
def test_a_plot_is_drawn_without_a_warning(tmp_path):
    arguments = [*QUICK_ARGUMENTS, "--plot", str(tmp_path / "plot.svg")]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-m", "seqkernels", "g2p", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "arning" not in done.stderr, done.stderr
