"""One run of the example: data, training, scores, files."""

import json
import os
import platform
import random
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .budget import affordable_epochs, fit
from .checkpoint import (
    Checkpoint,
    check_writable,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    write_atomically,
)
from .compare import Comparison, compare
from .console import ProgressBar, examples, published_table
from .data import (
    Dictionary,
    PairBatches,
    Split,
    Symbols,
    read_dictionary,
    split_by_index,
    split_by_list,
)
from .distributed import World
from .errors import G2PError, require
from .interrupt import interrupted_once
from .model import Model, ModelConfig, build_model, check_memory
from .plot import training_plot
from .score import ErrorCounts
from .train import LEARNING_RATES, Progress, Recipe, Trainer, score_words

PLOTTED_WORD = "pronunciation"


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see its help."""

    minutes: float = 5.0
    seed: int = 0
    cell: str = "gru"
    hidden: int = 256
    layers: int = 1
    models: int | None = None
    attention: str = "general"
    library: str = "seqkernels"
    beam: int = 4
    test_words: Path | None = None
    words: int | None = None
    json: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False
    plot: Path | None = None
    compare: bool = False


def run(options: Options, device: torch.device, world: World) -> tuple[Model, Symbols] | None:
    """Train, score and write what was asked for.

    Returns:
        The model and its symbols, or None where the training was interrupted.

    Raises:
        G2PError: data, checkpoint or a file to write cannot be used.
    """
    if options.plot is not None:
        require("matplotlib", "plots need")
    _check_paths(options)
    report = print if world.first else lambda *_, **__: None
    dictionary = _dictionary(options.words)
    split = _split(dictionary, options.test_words, report)
    trainer, symbols, config = _trainer(options, dictionary, split, device, world, report)
    seed = trainer.recipe.seed
    report(
        f"{len(split.train):,} words to train on, {len(split.dev):,} to develop, "
        f"{len(split.test):,} to test; seed {seed}, {device}"
    )
    if trainer.progress.seconds >= 60 * options.minutes:
        report(f"its {options.minutes:g} minutes are used up: give more to train on")
    bar = ProgressBar(options.minutes, quiet=not world.first)

    def save(progress: Progress) -> None:
        if options.checkpoint is not None and world.first:
            state = asdict(progress) | {"seed": seed, "test": split.digest()}
            weights = trainer.model.state_dict()
            moments = optimizer_tensors(trainer.model, trainer.optimizer)
            save_checkpoint(
                options.checkpoint, Checkpoint(config, symbols, state, weights, moments)
            )

    def score(words: list[str], beam: int = 1) -> ErrorCounts:
        return score_words(trainer.model, symbols, dictionary, words, beam=beam, world=world)

    # Each process drops out other units.
    torch.manual_seed(seed + trainer.progress.steps + 1_000_003 * world.rank)
    dev_sample = _spaced(split.dev, trainer.recipe.dev_words)
    # A flag, so that a step is never cut in two.
    interrupted = threading.Event()
    with interrupted_once(interrupted.set):
        try:
            progress = trainer.run(
                lambda: score(dev_sample), show=bar, save=save, interrupted=interrupted.is_set
            )
        finally:
            bar.clear()
        if interrupted.is_set():
            kept = "nothing was kept, for want of --checkpoint"
            if options.checkpoint is not None:
                kept = f"{options.checkpoint} holds the model; --resume continues"
            report(f"interrupted after {progress.seconds / 60:.1f} minutes: {kept}")
            return None
    dev = score(split.dev)
    progress.dev.append((round(progress.seconds, 2), dev.wer, dev.per))
    test = {"greedy": score(split.test), "beam": score(split.test, options.beam)}
    speeds = None
    if options.compare and world.first:
        speeds = compare(config, symbols, trainer.batches, trainer.recipe, device)
    if world.first:
        results = _results(options, split, config, trainer, dev, test, speeds, device, world)
        report(_summary(results, options))
        sample = random.Random(seed).sample(split.test, min(10, len(split.test)))
        report(examples(trainer.model, symbols, dictionary, sample, beam=options.beam))
        if options.json is not None:
            write_atomically(options.json, _json(results).encode())
        if options.plot is not None:
            plot = training_plot(progress, trainer.model, symbols, PLOTTED_WORD)
            write_atomically(options.plot, plot.encode())
    return trainer.model, symbols


def _check_paths(options: Options) -> None:
    """Raise a G2PError where two options name one file, or one cannot be written."""
    seen: dict[str, str] = {}
    for name in ("test_words", "json", "checkpoint", "plot"):
        path = getattr(options, name)
        if path is None:
            continue
        if name != "test_words":
            check_writable(path)
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            names = f"--{other} and --{name}".replace("_", "-")
            raise G2PError(f"{names} name one file, {path}")


def _dictionary(words: int | None) -> Dictionary:
    dictionary = read_dictionary()
    if words is None:
        return dictionary
    return {word: dictionary[word] for word in _spaced(list(dictionary), words)}


def _spaced(words: list[str], count: int) -> list[str]:
    """`count` of the words, evenly spaced."""
    if count >= len(words):
        return words
    return [words[i * len(words) // count] for i in range(count)]


def _split(dictionary: Dictionary, test_words: Path | None, report) -> Split:
    if test_words is None:
        split = split_by_index(dictionary)
        if not (split.train and split.dev and split.test):
            raise G2PError(f"{len(dictionary)} words are too few for three parts; take 20 or more")
        return split
    try:
        listed = test_words.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise G2PError(f"{test_words} cannot be read: {error}") from error
    split, missing = split_by_list(dictionary, listed)
    if missing:
        some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        report(f"not in the dictionary and left out of the test ({len(missing)}): {some}")
    return split


def _trainer(
    options: Options,
    dictionary: Dictionary,
    split: Split,
    device: torch.device,
    world: World,
    report,
) -> tuple[Trainer, Symbols, ModelConfig]:
    """A trainer at the beginning, or where the checkpoint ends."""
    torch.manual_seed(options.seed)  # the same first weights in all processes
    if not options.resume:
        symbols = Symbols.of(dictionary)
        config = ModelConfig(
            options.cell,
            options.hidden,
            options.attention,
            layers=options.layers,
            models=options.models or 1,
        )
        check_memory(config, symbols, device)
        rate = LEARNING_RATES[config.cell]
        recipe = Recipe(options.minutes, options.seed, learning_rate=rate)
        batches = PairBatches(dictionary, split.train, symbols, recipe.batch_size)
        if options.models is None:
            epochs = affordable_epochs(
                config, symbols, batches, recipe, options.library, device, world
            )
            config = fit(config, epochs)
            report(
                f"one model would see every word {epochs:.1f} times in {options.minutes:g} minutes "
                f"here: training {'one' if config.models == 1 else 'two together'}"
            )
        model = build_model(config, symbols, options.library).to(device)
        return Trainer(model, batches, recipe, world), symbols, config
    checkpoint = load_checkpoint(options.checkpoint)
    state = dict(checkpoint.progress)
    if state.pop("test") != split.digest():
        raise G2PError(
            f"{options.checkpoint} was trained with other test words; give the same --test-words "
            "and --words"
        )
    cell = checkpoint.config.cell
    if cell not in LEARNING_RATES:
        known = " or ".join(LEARNING_RATES)
        raise G2PError(f"{options.checkpoint} is of the cell {cell!r}; only {known} is trained on")
    check_memory(checkpoint.config, checkpoint.symbols, device)
    model = checkpoint.build(options.library).to(device)
    seed = state.pop("seed")
    progress = Progress(**state)
    recipe = Recipe(options.minutes, seed, learning_rate=LEARNING_RATES[cell])
    batches = PairBatches(dictionary, split.train, checkpoint.symbols, recipe.batch_size)
    trainer = Trainer(model, batches, recipe, world, progress)
    restore_optimizer(model, trainer.optimizer, checkpoint.optimizer)
    report(f"continues {options.checkpoint} at {trainer.progress.seconds / 60:.1f} minutes")
    return trainer, checkpoint.symbols, checkpoint.config


def _results(
    options: Options,
    split: Split,
    config: ModelConfig,
    trainer: Trainer,
    dev: ErrorCounts,
    test: dict[str, ErrorCounts],
    speeds: Comparison | None,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    progress = trainer.progress
    training_speed = round(progress.tokens / max(progress.busy_seconds, 1e-9), 1)
    return {
        "test": {name: counts.rates() for name, counts in test.items()},
        "dev": {"greedy": dev.rates()},
        "tokens_per_second": speeds.seqkernels if speeds else training_speed,
        "torch_tokens_per_second": speeds.torch if speeds else None,
        "training_tokens_per_second": training_speed,
        "minutes": round(progress.seconds / 60, 3),
        "processor_minutes": round(progress.processor_seconds / 60, 3),
        "epochs": round(progress.epochs, 3),
        "steps": progress.steps,
        "words": {
            "train": len(split.train),
            "dev": len(split.dev),
            "test": len(split.test),
        },
        "seed": trainer.recipe.seed,
        "device": str(device),
        "processor": _processor(device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": {
            "cell": config.cell,
            "hidden": config.hidden,
            "layers": config.layers,
            "models": config.models,
            "attention": config.attention,
            "library": options.library,
            "beam": options.beam,
        },
        "recipe": asdict(trainer.recipe),
        "history": {"loss": progress.loss, "dev": progress.dev},
    }


def _json(results: dict[str, Any]) -> str:
    """One value a line, but each part of the history on one."""
    history = {name: json.dumps(points) for name, points in results["history"].items()}
    text = json.dumps(results | {"history": {name: f"@{name}" for name in history}}, indent=1)
    for name, points in history.items():
        text = text.replace(f'"@{name}"', points)
    return text + "\n"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _summary(results: dict[str, Any], options: Options) -> str:
    test, dev, beam = results["test"], results["dev"]["greedy"], f"beam {options.beam}"
    attention, models = results["model"]["attention"], results["model"]["models"]
    name = "this run, no attention" if attention == "none" else f"this run, {attention} attention"
    if models > 1:
        name += f", {models} models together"
    lines = [
        f"trained {results['minutes']:.1f} minutes, {results['epochs']:.1f} epochs, "
        f"{results['training_tokens_per_second']:,.0f} tokens/s",
        f"dev, greedy: WER {dev['wer']:.2f} %, PER {dev['per']:.2f} %",
        f"test, greedy: WER {test['greedy']['wer']:.2f} %, PER {test['greedy']['per']:.2f} %",
        f"test, {beam}: WER {test['beam']['wer']:.2f} %, PER {test['beam']['per']:.2f} %",
    ]
    if results["torch_tokens_per_second"]:
        ours, theirs = results["tokens_per_second"], results["torch_tokens_per_second"]
        lines.append(
            f"same steps: {ours:,.0f} tokens/s, torch.nn {theirs:,.0f}, ratio {ours / theirs:.2f}"
        )
    if options.test_words is None and options.words is None:
        own = [(f"{name}, greedy", test["greedy"]["wer"]), (f"{name}, {beam}", test["beam"]["wer"])]
        lines.append(published_table(own))
    return "\n".join(lines)
