"""Checkpoints: written whole or not at all, and every damage named before anything is built."""

import os
import resource
from dataclasses import replace

import pytest
import torch
from g2p_runs import CPU, QUICK, edit, make_trainer, progress_of, write_checkpoint
from safetensors.torch import save_file

from seqkernels.g2p import G2PError, ModelConfig, build_model, main
from seqkernels.g2p.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from seqkernels.g2p.data import Symbols
from seqkernels.g2p.distributed import World
from seqkernels.g2p.model import parameter_count
from seqkernels.g2p.run import run

pytestmark = pytest.mark.usefixtures("one_thread", "read_once")


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


def said(path, capsys):
    """What `--say` with this checkpoint prints as an error, in one sentence and with status 2."""
    capsys.readouterr()
    assert main(["--checkpoint", str(path), "--say", "hello"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_files_that_are_no_checkpoints_are_refused(tmp_path, dictionary, capsys):
    path = tmp_path / "model.safetensors"
    assert "there is no checkpoint" in said(path, capsys)
    assert "not a whole safetensors file" in said(tmp_path / ("x" * 300), capsys)
    write_checkpoint(path, dictionary)
    content = path.read_bytes()
    huge = (2**60).to_bytes(8, "little") + content[8:]
    for damaged in (content[:-100], content[:20], b"", b"PK\x03\x04 something else", huge):
        path.write_bytes(damaged)
        assert "not a whole safetensors file" in said(path, capsys)
    save_file({"weight": torch.zeros(2)}, path)
    assert "not a checkpoint of seqkernels.g2p" in said(path, capsys)
    for text in ("", "{", "[" * 100_000, "9" * 5000):
        save_file({"weight": torch.zeros(2)}, path, {"format": "seqkernels-g2p-1", "config": text})
        assert "config is missing or not JSON" in said(path, capsys)


FIELDS = [
    *(("config", name, value) for name in ("hidden", "embedding", "layers", "models")
      for value in (0, -8, True, 2.0, "8", None, [8], 2**60, 10**400)),
    *(("config", "cell", value) for value in ("qrnn", 1, None, [], {})),
    *(("config", "attention", value) for value in ("hard", True, ["dot"])),
    *(("config", "dropout", value) for value in (-0.1, 1.5, float("nan"), True, "0", 10**400)),
    *(("symbols", "letters", value) for value in ([], "abc", [1], ["ab"], ["a", "a"], ["\n"], {})),
    *(("symbols", "phonemes", value) for value in ([], [""], [["AA"]], ["\ud800"], None)),
    *(("progress", "seed", value) for value in (-1, 2**32, 0.5, "0", None)),
    *(("progress", "seconds", value) for value in (-1, float("nan"), float("inf"), "1", 10**400)),
    *(("progress", "loss", value) for value in ({}, [1], [[1, 2, 3]], [["1", 2]], [[1, None]])),
    *(("progress", "test", value) for value in (1, None)),
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path, dictionary):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, dictionary)
    return path


def test_every_field_that_cannot_be_is_named(checkpoint, capsys):
    content = checkpoint.read_bytes()
    for part, name, value in FIELDS:
        checkpoint.write_bytes(content)
        edit(checkpoint, lambda d, _, p=part, n=name, v=value: d[p].update({n: v}))
        error = said(checkpoint, capsys)
        assert f"{part}: {name} is" in error and ", expected " in error, error
        assert len(error) < 400


def test_fields_that_are_missing_or_unknown_are_named(checkpoint, capsys):
    content = checkpoint.read_bytes()
    for part, name in (("config", "models"), ("symbols", "letters"), ("progress", "seed")):
        checkpoint.write_bytes(content)
        edit(checkpoint, lambda d, _, p=part, n=name: d[p].pop(n))
        assert f"{part}: '{name}' is missing; expected" in said(checkpoint, capsys)
        checkpoint.write_bytes(content)
        edit(checkpoint, lambda d, _, p=part: d[p].update(speed=1))
        assert f"{part}: 'speed' is no field of it" in said(checkpoint, capsys)
        checkpoint.write_bytes(content)
        edit(checkpoint, lambda d, _, p=part: d.update({p: [1]}))
        assert f"{part} is [1], expected its fields by name" in said(checkpoint, capsys)
        checkpoint.write_bytes(content)
        edit(checkpoint, lambda d, _, p=part: d.pop(p))
        assert f"{part} is missing" in said(checkpoint, capsys)


@pytest.mark.parametrize("sizes", [dict(hidden=2**40), dict(models=1_000_000), dict(layers=2**50),
                                   dict(embedding=2**52), dict(hidden=66), dict(models=2)],
                         ids=str)  # fmt: skip
def test_sizes_are_checked_against_the_file_before_anything_is_built(checkpoint, sizes, capsys):
    edit(checkpoint, lambda d, _: d["config"].update(sizes))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = said(checkpoint, capsys)
    assert "does not fit its own configuration: that takes" in error and "it holds" in error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most + 100_000  # KiB


def shuffled(tensors):
    """Two tensors of other shapes, with as many numbers as before."""
    name = "model.decoder.output.weight"
    tensors[name] = tensors[name].t().contiguous()


EMBEDDING, BIAS = "model.encoder.embedding.weight", "model.decoder.output.bias"
DAMAGE = {
    f"{BIAS} is F64": lambda t: t.update({BIAS: t[BIAS].double()}),
    f"{EMBEDDING} is I32": lambda t: t.update({EMBEDDING: t[EMBEDDING].int()}),
    f"{EMBEDDING} is BF16": lambda t: t.update({EMBEDDING: t[EMBEDDING].bfloat16()}),
    "model.decoder.output.weight is F32 [": shuffled,
    "model.bias is no part": lambda t: t.update({"model.bias": t.pop(BIAS)}),
    "that takes": lambda t: t.pop(BIAS),
    "other is no part of it": lambda t: t.update(other=torch.zeros(1)),
    "step is F32 [2], expected F32 []": lambda t: t.update(
        {f"optimizer.{BIAS.removeprefix('model.')}.step": torch.zeros(2)}
    ),
    "not finite": lambda t: t[BIAS].fill_(torch.nan),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_tensors_that_cannot_be_are_named(checkpoint, message, capsys):
    edit(checkpoint, lambda _, tensors: DAMAGE[message](tensors))
    assert message in said(checkpoint, capsys)


def test_an_odd_width_cannot_attend(checkpoint, capsys):
    edit(checkpoint, lambda d, _: d["config"].update(hidden=65))
    assert "hidden is 65, expected an even number" in said(checkpoint, capsys)


@pytest.mark.parametrize("attention", ["general", "dot", "additive", "none"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "rnn_tanh", "rnn_relu"])
def test_parameters_are_counted_without_a_model(cell, attention):
    symbols = Symbols(("a", "b"), ("A", "B", "C"))
    for hidden, layers, models in ((6, 1, 1), (8, 2, 1), (4, 3, 2)):
        config = ModelConfig(cell, hidden, attention, 5, layers, 0.0, models)
        held = sum(p.numel() for p in build_model(config, symbols).parameters())
        assert parameter_count(config, symbols) == held


def test_weights_that_are_not_finite_are_not_kept(tmp_path, dictionary):
    path = tmp_path / "model.safetensors"
    model = write_checkpoint(path, dictionary)
    content = path.read_bytes()
    kept = load_checkpoint(path)
    with torch.no_grad():
        model.decoder.output.bias[0] = torch.inf
    with pytest.raises(G2PError, match=r"model\.decoder\.output\.bias .* not finite"):
        save_checkpoint(path, kept._replace(weights=model.state_dict()))
    assert path.read_bytes() == content


def whole_checkpoint(tmp_path):
    """A checkpoint of a short run, with its options to continue."""
    options = replace(QUICK, checkpoint=tmp_path / "model.safetensors")
    run(options, CPU, World())
    return load_checkpoint(options.checkpoint), replace(options, resume=True, minutes=1.0)


def test_a_training_that_cannot_be_continued(tmp_path):
    checkpoint, options = whole_checkpoint(tmp_path)
    cases = [
        (dict(optimizer={}), "optimiser state lacks .*step"),
        (
            dict(optimizer={k: v for k, v in checkpoint.optimizer.items() if k[-3:] != "_sq"}),
            "lacks .*exp_avg_sq",
        ),
        (dict(symbols=replace(checkpoint.symbols, phonemes=("QQ",) * 0)), "phonemes is"),
    ]
    for damage, message in cases:
        save_checkpoint(options.checkpoint, checkpoint._replace(**damage))
        with pytest.raises(G2PError, match=message):
            run(options, CPU, World())


def test_symbols_that_lack_one_of_the_dictionary(tmp_path):
    checkpoint, options = whole_checkpoint(tmp_path)
    phonemes = list(checkpoint.symbols.phonemes)
    phonemes[0] = "QQ"
    symbols = replace(checkpoint.symbols, phonemes=tuple(phonemes))
    save_checkpoint(options.checkpoint, checkpoint._replace(symbols=symbols))
    with pytest.raises(G2PError, match="unknown phoneme 'AA'; the model knows QQ"):
        run(options, CPU, World())


def test_a_cell_without_a_recipe_is_not_continued(tmp_path):
    checkpoint, options = whole_checkpoint(tmp_path)
    config = replace(checkpoint.config, cell="rnn")
    weights = build_model(config, checkpoint.symbols).state_dict()
    changed = checkpoint._replace(config=config, weights=weights, optimizer={})
    save_checkpoint(options.checkpoint, changed)
    with pytest.raises(G2PError, match="cell 'rnn'; only lstm or gru"):
        run(options, CPU, World())


def test_a_checkpoint_of_no_progress_can_speak(tmp_path, dictionary, capsys):
    trainer, symbols, config = make_trainer(dictionary, models=2)
    path = tmp_path / "model.safetensors"
    weights = trainer.model.state_dict()
    save_checkpoint(path, Checkpoint(config, symbols, progress_of(), weights, {}))
    assert main(["--checkpoint", str(path), "--say", "fine"]) == 0
    assert capsys.readouterr().out.startswith("fine")
