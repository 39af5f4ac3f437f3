"""The command line of the example: train, score, speak."""

import argparse
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from .. import use_backend
from .._interrupt import INTERRUPTED
from .checkpoint import load_checkpoint
from .console import prompt, say
from .distributed import world
from .errors import G2PError, require
from .interrupt import interrupted_once, stop
from .run import Options, run
from .schema import SEEDS


def build_parser() -> argparse.ArgumentParser:
    """The arguments, with their defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m seqkernels.g2p",
        description="Train an encoder-decoder that pronounces English words, score it, ask it.",
    )
    add = parser.add_argument
    add("--minutes", type=_minutes, default=5.0, help="training time; the schedule scales to it")
    add("--seed", type=_integer(0, SEEDS - 1), default=0)
    add("--cell", choices=("lstm", "gru"), default="gru")
    add("--hidden", type=_even, default=256, help="width of the decoder's state, even")
    add(
        "--layers", type=_integer(1), default=1, help="recurrent layers of encoder and decoder each"
    )
    add(
        "--models",
        type=_integer(1),
        help="models that average their probabilities; by default one for a short training, two "
        "for a long one",
    )
    add(
        "--attention",
        choices=("general", "dot", "additive", "none"),
        default="general",
        help="none: the textbook model, final state only",
    )
    add("--backend", help="a backend of seqkernels, or torch for the layers of torch.nn")
    add("--device", default="cpu", help="cpu or cuda")
    add("--beam", type=_integer(1, 1000), default=4, help="hypotheses of the beam search")
    add("--test-words", type=_path, metavar="FILE", help="test on these words, one a line")
    add("--words", type=_integer(1), help="use this many words of the dictionary, evenly spaced")
    add("--json", type=_path, metavar="FILE", help="write the results")
    add("--checkpoint", type=_path, metavar="FILE", help="keep the model here (safetensors)")
    add("--resume", action="store_true", help="continue the training of --checkpoint")
    add("--plot", type=_path, metavar="FILE", help="plot losses, errors and attention (SVG)")
    add("--compare", action="store_true", help="time the same steps with torch.nn")
    add("--say", nargs="+", metavar="WORD", help="pronounce these with --checkpoint; no training")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.checkpoint is None and (parsed.say or parsed.resume):
        parser.error("--say and --resume need --checkpoint")
    try:
        device = _device(parsed.device)
        if parsed.checkpoint is not None:
            require("safetensors", "checkpoints need")
        if parsed.plot is not None:
            # Before denormals are flushed, of which its import would warn.
            require("matplotlib", "plots need")
        with interrupted_once(stop), _backend(parsed.backend):
            if parsed.say:
                return _say(parsed, device)
            with _flushed_denormals():
                return _train(parsed, device)
    except G2PError as error:
        print(f"g2p: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # A backend that was named and cannot run says so; anything else is not the user's doing.
        if "cannot run this call" not in str(error):
            raise
        print(f"g2p: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Denormal numbers are zero inside.

    A model that grows sure of itself computes with more and more of them, and Intel processors take
    over a hundred cycles for each: after 1,800 steps a step took 2.4 times as long. Threads that
    start inside inherit the setting.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _train(parsed: argparse.Namespace, device: torch.device) -> int:
    options = Options(
        minutes=parsed.minutes,
        seed=parsed.seed,
        cell=parsed.cell,
        hidden=parsed.hidden,
        layers=parsed.layers,
        models=parsed.models,
        attention=parsed.attention,
        library=_library(parsed),
        beam=parsed.beam,
        test_words=parsed.test_words,
        words=parsed.words,
        json=parsed.json,
        checkpoint=parsed.checkpoint,
        resume=parsed.resume,
        plot=parsed.plot,
        compare=parsed.compare,
    )
    with world(device.type) as own:
        if device.type == "cuda" and own.size > 1:
            device = torch.device("cuda", own.local_rank)
        finished = run(options, device, own)
        first = own.first
    if finished is None:
        return INTERRUPTED
    if first and sys.stdin is not None and sys.stdin.isatty():
        prompt(*finished, beam=parsed.beam)
    return 0


def _say(parsed: argparse.Namespace, device: torch.device) -> int:
    checkpoint = load_checkpoint(parsed.checkpoint)
    model = checkpoint.build(_library(parsed)).to(device)
    good = say(model, checkpoint.symbols, parsed.say, beam=parsed.beam, best=3)
    return 0 if good else 2


def _library(parsed: argparse.Namespace) -> str:
    return "torch" if parsed.backend == "torch" else "seqkernels"


def _backend(name: str | None):
    if name in (None, "torch"):
        return nullcontext()
    try:
        return use_backend(name)
    except ValueError as error:
        raise G2PError(f"{error}, or torch") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise G2PError(f"unknown device {name!r}; expected cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise G2PError(f"unknown device {name!r}; expected cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise G2PError(f"there is no GPU {name!r} that this torch can use")
    return device


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-6 <= value <= 1e6:
        raise ArgumentTypeError(f"expected a number from 0.000001 to 1000000, got {text!r}")
    return value


def _integer(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    expected = f"{least} or more" if most == sys.maxsize else f"{least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"expected an integer, {expected}, got {text!r}")
        return value

    return read


def _even(text: str) -> int:
    value = _integer(2)(text)
    if value % 2:
        raise ArgumentTypeError(f"expected an even number, got {text!r}")
    return value


def _path(text: str) -> Path:
    if not text or not text.isprintable():
        raise ArgumentTypeError(f"expected the name of a file that can be printed, got {text!r}")
    return Path(text)
