"""The example from end to end: training, checkpoints, resuming, interruption, the command line."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from g2p_runs import CPU, QUICK, QUICK_ARGUMENTS, make_trainer, progress_of

from seqkernels.g2p import G2PError, build_model, main, pronounce
from seqkernels.g2p import run as run_module
from seqkernels.g2p.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from seqkernels.g2p.console import prompt
from seqkernels.g2p.distributed import World
from seqkernels.g2p.run import run
from seqkernels.g2p.train import Progress, Recipe, Trainer, score_words

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")


@pytest.mark.parametrize(("cell", "attention"), [("lstm", "general"), ("gru", "none")])
def test_a_few_words_are_learned_by_heart(dictionary, cell, attention):
    trainer, symbols, _ = make_trainer(dictionary, cell=cell, attention=attention, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        for batch in trainer.batches.epoch(generator):
            loss = trainer.step(batch, 1e-2)
    counts = score_words(trainer.model, symbols, dictionary, list(dictionary))
    assert loss < 0.5
    assert counts.wer < 50
    beam = score_words(trainer.model, symbols, dictionary, list(dictionary), beam=4)
    assert beam.wer < 50


def test_the_same_steps_as_with_torch_layers(dictionary):
    ours, _, _ = make_trainer(dictionary, dropout=0.0)
    torchs, _, _ = make_trainer(dictionary, "torch", dropout=0.0)
    for batch in islice(ours.batches.epoch(torch.Generator().manual_seed(0)), 10):
        assert ours.step(batch, 2e-3).item() == pytest.approx(
            torchs.step(batch, 2e-3).item(), rel=1e-4
        )


def test_models_together_learn_as_if_alone(dictionary):
    together, symbols, config = make_trainer(dictionary, dropout=0.0, models=2)
    alone = []
    for number in range(2):
        model = build_model(replace(config, models=1), symbols)
        model.load_state_dict(together.model.models[number].state_dict())
        alone.append(Trainer(model, together.batches, Recipe()))
    for batch in islice(together.batches.epoch(torch.Generator().manual_seed(0)), 5):
        loss = together.step(batch, 2e-3).item()
        assert loss == pytest.approx(sum(t.step(batch, 2e-3).item() for t in alone) / 2)
    for number, trainer in enumerate(alone):
        for name, weight in trainer.model.state_dict().items():
            torch.testing.assert_close(weight, together.model.models[number].state_dict()[name])


def test_models_together_are_kept_and_continued(tmp_path, capsys):
    checkpoint, result = tmp_path / "model.safetensors", tmp_path / "result.json"
    options = replace(QUICK, models=2, cell="gru", checkpoint=checkpoint, plot=tmp_path / "p.svg")
    run(options, CPU, World())
    run(replace(options, models=1, resume=True, minutes=0.04, json=result), CPU, World())
    assert json.loads(result.read_text())["model"]["models"] == 2
    capsys.readouterr()
    assert main(["--checkpoint", str(checkpoint), "--say", "Banana"]) == 0
    assert capsys.readouterr().out.startswith("banana")


def test_answers_keep_the_order_of_the_words(dictionary):
    trainer, symbols, _ = make_trainer(dictionary)
    words = ["on", "banana", "at", "a", "bananas", "on"]
    together = pronounce(trainer.model, symbols, words, beam=3, best=2)
    for word, answers in zip(words, together, strict=True):
        (alone,) = pronounce(trainer.model, symbols, [word], beam=3, best=2)
        assert [a.pronunciation for a in answers] == [a.pronunciation for a in alone]
        assert answers[0].probability >= answers[1].probability > 0


def test_the_learning_rate_follows_the_budget():
    recipe = Recipe(learning_rate=1.0, warm_up=10, hold=0.4)
    assert recipe.rate(0.0, 0) == pytest.approx(0.1)
    assert recipe.rate(0.4, 100) == pytest.approx(1.0)
    assert recipe.rate(0.7, 100) == pytest.approx(0.505)
    assert recipe.rate(1.0, 100) == recipe.rate(1.3, 100) == pytest.approx(0.01)


def test_results_plot_and_checkpoint_are_written(tmp_path, capsys):
    options = replace(
        QUICK,
        json=tmp_path / "result.json",
        plot=tmp_path / "plot.svg",
        checkpoint=tmp_path / "model.safetensors",
    )
    model, symbols = run(options, CPU, World())
    result = json.loads(options.json.read_text())
    assert set(result["test"]["greedy"]) == set(result["test"]["beam"]) == {"wer", "per"}
    assert result["tokens_per_second"] > 0
    assert result["torch_tokens_per_second"] is None
    assert result["words"] == {"train": 340, "dev": 20, "test": 40}
    assert result["minutes"] == pytest.approx(0.02, abs=0.02)
    assert result["epochs"] > 0
    assert 0 < result["processor_minutes"] < 2 * torch.get_num_threads() * result["minutes"]
    assert (result["seed"], result["device"]) == (0, "cpu")
    texts = [e.text for e in ElementTree.parse(options.plot).iter() if e.tag.endswith("text")]
    assert {"Training loss", "WER", "Attention: pronunciation"} <= set(texts)
    kept = load_checkpoint(options.checkpoint)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept.weights[name])
    assert "words to train on" in capsys.readouterr().out
    assert main(["--checkpoint", str(options.checkpoint), "--say", "Banana"]) == 0
    assert capsys.readouterr().out.startswith("banana")


def test_a_training_is_continued_where_it_ended(tmp_path, capsys):
    options = replace(QUICK, checkpoint=tmp_path / "model.safetensors", seed=5, cell="gru")
    run(options, CPU, World())
    first = load_checkpoint(options.checkpoint)
    # The model and its seed are the checkpoint's, whatever else the command line says.
    result = tmp_path / "result.json"
    options = replace(options, seed=0, cell="lstm", hidden=256, attention="none", json=result)
    run(replace(options, resume=True, minutes=0.04), CPU, World())
    written = json.loads(result.read_text())
    assert written["seed"] == written["recipe"]["seed"] == 5
    assert written["recipe"]["learning_rate"] == 2e-3
    model = written["model"]
    assert (model["cell"], model["hidden"], model["attention"]) == ("gru", 32, "general")
    printed = capsys.readouterr().out
    assert "seed 5, cpu" in printed and "used up" not in printed
    second = load_checkpoint(options.checkpoint)
    assert second.progress["seconds"] >= 0.04 * 60 > first.progress["seconds"]
    assert second.progress["steps"] > first.progress["steps"]
    assert second.progress["seed"] == 5
    kind = "models.1.encoder.embedding.weight.step"
    assert second.optimizer[kind] == second.progress["steps"]
    # A finished one is not trained further.
    run(replace(options, resume=True, minutes=0.04), CPU, World())
    assert load_checkpoint(options.checkpoint).progress == second.progress
    assert "its 0.04 minutes are used up" in capsys.readouterr().out
    with pytest.raises(G2PError, match="other test words"):
        run(replace(options, resume=True, words=500), CPU, World())


def test_an_interrupted_training_keeps_its_last_step(tmp_path, capsys, monkeypatch):
    steps = []
    step = Trainer.step

    def interrupting(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupting)
    path = tmp_path / "model.safetensors"
    arguments = [*QUICK_ARGUMENTS, "--minutes", "5", "--checkpoint", str(path)]
    handler = signal.getsignal(signal.SIGINT)
    assert main(arguments) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(path).progress["steps"] == 3
    assert "--resume continues" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_a_training_at_once(tmp_path, capsys, monkeypatch):
    def interrupting(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(Trainer, "step", interrupting)
    path = tmp_path / "model.safetensors"
    handler = signal.getsignal(signal.SIGINT)
    assert main([*QUICK_ARGUMENTS, "--checkpoint", str(path)]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert not path.exists()


def test_words_that_cannot_be_said_are_named(tmp_path, dictionary, capsys):
    trainer, symbols, config = make_trainer(dictionary)
    path = tmp_path / "model.safetensors"
    save_checkpoint(
        path, Checkpoint(config, symbols, progress_of(), trainer.model.state_dict(), {})
    )
    assert main(["--checkpoint", str(path), "--say", "naïve", "", "fine"]) == 2
    captured = capsys.readouterr()
    assert "unknown symbol 'ï'" in captured.err
    assert "empty word" in captured.err
    assert captured.out.startswith("fine")


def test_the_prompt_answers_until_an_empty_line(dictionary, capsys, monkeypatch):
    trainer, symbols, _ = make_trainer(dictionary)
    lines = iter(["Fine naïve", "banana", ""])
    monkeypatch.setattr("builtins.input", lambda text: next(lines))
    prompt(trainer.model, symbols, beam=2)
    captured = capsys.readouterr()
    assert "\nfine" in captured.out
    assert "\nbanana" in captured.out
    assert "unknown symbol" in captured.err
    assert list(lines) == []


def test_the_comparison_gives_both_speeds(tmp_path, monkeypatch):
    options = replace(QUICK, compare=True, json=tmp_path / "result.json")
    compare = run_module.compare
    monkeypatch.setattr(run_module, "compare", lambda *arguments: compare(*arguments, seconds=0.5))
    run(options, CPU, World())
    result = json.loads(options.json.read_text())
    assert result["tokens_per_second"] > 0
    assert result["torch_tokens_per_second"] > 0


def test_denormals_are_flushed_while_training_alone(capsys, monkeypatch):
    tiny = torch.tensor(1e-40)
    inside = []
    monkeypatch.setattr(
        "seqkernels.g2p.cli._train", lambda *_: inside.append((tiny * 1.0).item()) or 0
    )
    assert main(["--minutes", "1"]) == 0
    assert inside == [0.0]
    assert (tiny * 1.0).item() > 0


def test_a_list_of_test_words(tmp_path, capsys, whole):
    listed = tmp_path / "words.txt"
    words = list(whole)
    some = [words[i * len(words) // 400] for i in range(30)]
    listed.write_text("\n".join([*some, "xyzzyx"]))
    result = tmp_path / "result.json"
    arguments = [*QUICK_ARGUMENTS, "--test-words", str(listed), "--json", str(result)]
    assert main(arguments) == 0
    assert "left out of the test (1): xyzzyx" in capsys.readouterr().out
    assert json.loads(result.read_text())["words"] == {"train": 351, "dev": 19, "test": 30}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "abacus"], "unknown device"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--backend", "persistent"], "backend 'persistent' cannot run this call"),
        (["--json", "/no/such/folder/x.json"], "there is no folder"),
        (["--json", "/"], "/ is a folder; name a file"),
        (["--plot", "/proc/self/x.svg"], "cannot be written to"),
        (["--test-words", "/no/such/file"], "cannot be read"),
        (["--words", "2"], "too few"),
        (["--resume", "--checkpoint", "no-such.safetensors"], "there is no checkpoint"),
    ],
)
def test_bad_arguments_are_explained(arguments, message, capsys):
    assert main([*QUICK_ARGUMENTS, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--minutes", "0"], ["--hidden", "31"], ["--say", "x"], ["--beam", "0"]]
)
def test_bad_numbers_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_module_is_a_command_and_asks_nothing_without_a_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "seqkernels", "g2p", *QUICK_ARGUMENTS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "test, greedy: WER" in done.stdout
    assert "> " not in done.stdout


@pytest.mark.exhaustive
def test_two_processes_train_one_model(tmp_path):
    result, checkpoint = tmp_path / "result.json", tmp_path / "model.safetensors"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "seqkernels.g2p", *QUICK_ARGUMENTS),
            *("--json", str(result), "--checkpoint", str(checkpoint)),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test, greedy: WER") == 1
    written = json.loads(result.read_text())
    assert written["processes"] == 2
    assert written["words"]["test"] == 40
    assert load_checkpoint(checkpoint).progress["steps"] > 0


def test_progress_is_json(dictionary):
    assert json.loads(json.dumps(vars(Progress()))) == vars(Progress())
