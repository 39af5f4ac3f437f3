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

from seqkernels.g2p import G2PError, ModelConfig, build_model, main, pronounce, read_dictionary
from seqkernels.g2p import run as run_module
from seqkernels.g2p.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from seqkernels.g2p.console import prompt
from seqkernels.g2p.data import PairBatches, Symbols
from seqkernels.g2p.distributed import World
from seqkernels.g2p.run import Options, run
from seqkernels.g2p.train import Progress, Recipe, Trainer, score_words

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")
QUICK = Options(minutes=0.02, hidden=32, words=400)
QUICK_ARGUMENTS = ["--minutes", "0.02", "--hidden", "32", "--words", "400"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole():
    return read_dictionary()


@pytest.fixture(scope="module")
def dictionary(whole):
    return {word: whole[word] for word in islice(whole, 0, None, 900)}


@pytest.fixture(autouse=True)
def read_once(whole, monkeypatch):
    """The dictionary is read once for all tests: it takes longer than most of them."""
    monkeypatch.setattr(run_module, "read_dictionary", lambda: whole)


def make_trainer(dictionary, library="seqkernels", **options):
    torch.manual_seed(0)
    symbols = Symbols.of(dictionary)
    config = ModelConfig(hidden=64, **options)
    model = build_model(config, symbols, library)
    batches = PairBatches(dictionary, list(dictionary), symbols, 32)
    return Trainer(model, batches, Recipe()), symbols, config


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


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(G2PError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_that_are_none_are_refused(tmp_path, dictionary, capsys):
    trainer, symbols, config = make_trainer(dictionary)
    path = tmp_path / "model.safetensors"
    with pytest.raises(G2PError, match="there is no checkpoint"):
        load_checkpoint(path)
    weights = trainer.model.state_dict()
    whole = Checkpoint(config, symbols, {}, weights, {})
    save_checkpoint(path, whole)
    content = path.read_bytes()
    for damaged in (content[:-100], content[:20], b"", b"PK\x03\x04 something else"):
        path.write_bytes(damaged)
        with pytest.raises(G2PError, match="not a whole safetensors file"):
            load_checkpoint(path)
    assert main(["--checkpoint", str(path), "--say", "hello"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(G2PError, match="not a checkpoint of seqkernels.g2p"):
        load_checkpoint(path)
    save_checkpoint(path, whole._replace(config=replace(config, hidden=128)))
    with pytest.raises(G2PError, match="does not fit its own configuration"):
        load_checkpoint(path).build()
    path.write_bytes(content.replace(b"attention", b"attentiom", 1))
    with pytest.raises(G2PError, match="description is damaged"):
        load_checkpoint(path)


def whole_checkpoint(tmp_path):
    """A checkpoint of a short run, with its options to continue."""
    options = replace(QUICK, checkpoint=tmp_path / "model.safetensors")
    run(options, CPU, World())
    return load_checkpoint(options.checkpoint), replace(options, resume=True, minutes=1.0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c._replace(config=replace(c.config, cell="foo")), "unknown cell 'foo'"),
        (lambda c: c._replace(config=replace(c.config, hidden="x")), "its own configuration"),
        (lambda c: c._replace(progress=c.progress | {"speed": 1}), "its progress is damaged"),
        (
            lambda c: c._replace(progress={k: v for k, v in c.progress.items() if k != "seed"}),
            "its progress is damaged: KeyError",
        ),
        (lambda c: c._replace(optimizer={}), "optimiser state is damaged: .* is missing"),
        (
            lambda c: c._replace(
                optimizer={k: v for k, v in c.optimizer.items() if not k.endswith("exp_avg_sq")}
            ),
            "exp_avg_sq is missing",
        ),
        (
            lambda c: c._replace(optimizer=c.optimizer | {"nobody.step": torch.zeros(())}),
            "nobody.step is of no parameter",
        ),
        (
            lambda c: c._replace(
                optimizer={
                    k: v[:1] if k.endswith("weight.exp_avg") else v for k, v in c.optimizer.items()
                }
            ),
            r"exp_avg is \[1, ",
        ),
    ],
)
def test_damage_inside_a_checkpoint_is_named(tmp_path, damage, message):
    checkpoint, options = whole_checkpoint(tmp_path)
    save_checkpoint(options.checkpoint, damage(checkpoint))
    with pytest.raises(G2PError, match=message):
        run(options, CPU, World())


def test_a_cell_without_a_recipe_is_not_continued(tmp_path):
    checkpoint, options = whole_checkpoint(tmp_path)
    config = replace(checkpoint.config, cell="rnn")
    weights = build_model(config, checkpoint.symbols).state_dict()
    save_checkpoint(options.checkpoint, checkpoint._replace(config=config, weights=weights))
    with pytest.raises(G2PError, match="cell 'rnn'; only lstm or gru"):
        run(options, CPU, World())


def test_words_that_cannot_be_said_are_named(tmp_path, dictionary, capsys):
    trainer, symbols, config = make_trainer(dictionary)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(config, symbols, {}, trainer.model.state_dict(), {}))
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
