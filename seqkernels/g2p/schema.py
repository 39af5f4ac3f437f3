"""What the description inside a checkpoint must be, before anything is built from it."""

import json
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from ..seq2seq.attention import ATTENTIONS
from ..seq2seq.layers import CELL_OPTIONS
from .errors import G2PError

Rule = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is it

MOST = 2**53  # all integers up to here are numbers of JSON
SEEDS = 2**32  # what `random`, `torch` and the seeds made from one take


def _integer(least: int, most: int = MOST) -> Rule:
    return f"an integer from {least} to {most}", lambda v: type(v) is int and least <= v <= most


def _number(most: float) -> Rule:
    return f"a number from 0 to {most:g}", lambda v: type(v) in (int, float) and 0 <= v <= most


def _name(*names: str) -> Rule:
    return f"one of {', '.join(names)}", lambda v: v in names


def _strings(what: str, good: Callable[[str], bool]) -> Rule:
    def check(value: Any) -> bool:
        strings = isinstance(value, list) and all(isinstance(s, str) for s in value)
        return strings and 0 < len(set(value)) == len(value) and all(map(good, value))

    return f"a list of different {what}", check


def _rows(width: int) -> Rule:
    _, number = _number(MOST)

    def check(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(row, list) and len(row) == width and all(map(number, row)) for row in value
        )

    return f"a list of lists of {width} numbers", check


SCHEMA: dict[str, dict[str, Rule]] = {
    "config": {
        "cell": _name(*CELL_OPTIONS),
        "hidden": _integer(1),
        "attention": _name(*ATTENTIONS, "none"),
        "embedding": _integer(1),
        "layers": _integer(1),
        "dropout": _number(1.0),
        "models": _integer(1),
    },
    "symbols": {
        "letters": _strings("letters", lambda s: len(s) == 1 and s.isprintable()),
        "phonemes": _strings("names of phonemes", lambda s: s != "" and s.isprintable()),
    },
    "progress": {
        "seconds": _number(MOST),
        "steps": _integer(0),
        "epochs": _number(MOST),
        "tokens": _number(MOST),
        "busy_seconds": _number(MOST),
        "processor_seconds": _number(MOST),
        "loss": _rows(2),
        "dev": _rows(3),
        "seed": _integer(0, SEEDS - 1),
        "test": ("the name of a test part", lambda v: isinstance(v, str)),
    },
}


def read_description(path: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The parts of a checkpoint's description.

    Args:
        path: of the checkpoint, for messages.
        metadata: of the file, JSON by the name of the part.

    Raises:
        G2PError: a part or a field is missing, unknown or not what is expected.
    """
    return {part: _read(f"{path}: {part}", metadata.get(part), SCHEMA[part]) for part in SCHEMA}


def _read(where: str, text: str | None, rules: dict[str, Rule]) -> dict[str, Any]:
    try:
        fields = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise G2PError(f"{where} is missing or not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise G2PError(f"{where} is {shortened(fields)}, expected its fields by name")
    for name in sorted(fields.keys() ^ rules.keys()):
        state = "is missing" if name in rules else "is no field of it"
        raise G2PError(f"{where}: {shortened(name)} {state}; expected {', '.join(rules)}")
    for name, (expected, good) in rules.items():
        if not good(fields[name]):
            raise G2PError(f"{where}: {name} is {shortened(fields[name])}, expected {expected}")
    return fields
