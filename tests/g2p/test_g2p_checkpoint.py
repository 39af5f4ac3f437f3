"""Checkpoints: written whole or not at all, and every damage named."""

import os
from dataclasses import replace

import pytest
import torch
from g2p_runs import CPU, QUICK, make_trainer

from seqkernels.g2p import G2PError, build_model, main
from seqkernels.g2p.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from seqkernels.g2p.distributed import World
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
