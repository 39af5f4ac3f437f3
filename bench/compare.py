"""Compare two sets of results and say what became slower."""

from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from . import results
from .contestants import BASELINE


@dataclass(frozen=True)
class Change:
    """One contestant of one case and mode in two runs.

    Attributes:
        name: suite, case, mode and contestant.
        ratio: new time over old time; above 1 is slower.
        certain: the two ranges p20 to p80 do not meet.
    """

    name: str
    ratio: float
    certain: bool


def documents(path: Path) -> list[dict]:
    """The result file of that name, or all those below a folder.

    Raises:
        ValueError: there is none, or it breaks the schema.
    """
    if path.is_file():
        try:
            return [results.read(path)]
        except JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    found = [results.read(p) for p in sorted(path.rglob("*.json")) if '"suite"' in p.read_text()]
    if not found:
        raise ValueError(f"no results in {path}")
    return found


def changes(old: list[dict], new: list[dict], relative: bool = False) -> Iterator[Change]:
    """What both sides have timed, on devices of the same name.

    Args:
        old: documents before.
        new: documents after.
        relative: compare times in units of torch.nn's of the same run, so that a slower machine
            does not look like a slower kernel.
    """
    before = dict(_times(old, relative))
    for name, times in _times(new, relative):
        if name in before:
            was = before[name]
            apart = times["p20"] > was["p80"] or times["p80"] < was["p20"]
            yield Change(" ".join(name), times["median"] / was["median"], apart)


def _times(found: list[dict], relative: bool) -> Iterator[tuple[tuple[str, ...], dict]]:
    for document in found:
        where = results.folder(document["device"])
        for result in document["results"]:
            timed = {r["name"]: r["time_s"] for r in result["contestants"] if r["time_s"]}
            unit = timed[BASELINE]["median"] if relative and BASELINE in timed else 1.0
            for name, times in timed.items():
                if relative and name == BASELINE:
                    continue
                key = (where, document["suite"], result["case"]["id"], result["mode"], name)
                yield key, {k: times[k] / unit for k in ("median", "p20", "p80")}


def lost(old: list[dict], new: list[dict]) -> Iterator[str]:
    """What had a time and now has a reason for having none: name and reason."""
    timed = {name for name, _ in _times(old, relative=False)}
    for document in new:
        where = results.folder(document["device"])
        for result in document["results"]:
            for row in result["contestants"]:
                key = (where, document["suite"], result["case"]["id"], result["mode"], row["name"])
                if row["refused"] and key in timed:
                    yield f"{' '.join(key)}: {row['refused']}"


def report(old: Path, new: Path, regression: float, relative: bool = False) -> tuple[str, bool]:
    """A table of all changes, worst first, and whether any regressed.

    A contestant that is refused now and was timed before has regressed, too.

    Args:
        old: result file or folder before.
        new: result file or folder after.
        regression: how much slower a contestant may be, as a share.
        relative: see `changes`.

    Raises:
        ValueError: the two have nothing in common.
    """
    before, after = documents(old), documents(new)
    found = sorted(changes(before, after, relative), key=lambda c: -c.ratio)
    gone = list(lost(before, after))
    if not found and not gone:
        raise ValueError("the two have no measurement in common")
    slower = [c for c in found if c.certain and c.ratio > 1 + regression]
    lines = [f"  lost          {name}" for name in gone]
    lines += [f"{c.ratio:6.3f}  {'slower' if c in slower else '      '}  {c.name}" for c in found]
    summary = f"{len(found)} compared, {len(slower)} slower by more than {regression:.0%}"
    summary += f", {len(gone)} lost" * bool(gone)
    return "\n".join(["new/old", *lines, summary]), bool(slower or gone)
