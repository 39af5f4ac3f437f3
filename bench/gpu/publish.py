"""Turns the files of a call into results of the repository: a document, and the rest as it is."""

import shutil
from pathlib import Path

from .. import results, runner
from ..cases import SUITES, Case
from . import protocol

SUITE = SUITES["headline"]


def document(folder: Path, facts: dict[str, dict]) -> dict | None:
    """The headline suite's document of bench/schema.json; None where no case of it was measured.

    Args:
        folder: of a call's files.
        facts: of the device, as `read` gives them.
    """
    device, settings = (facts["document"][name] for name in ("device", "settings"))
    found = [
        runner.result(_case(measured["case"]), record["mode"], measured["contestants"], device)
        for record in protocol.records(folder / "ratios.jsonl")
        for measured in record.get("measured", ())
    ]
    if not found:
        return None
    found.sort(key=lambda r: -r["case"]["length"])  # as the suite has them
    ids = {r["case"]["id"] for r in found}
    left_out = [case.id for case in SUITE.cases if case.id not in ids]
    return {
        "schema": results.SCHEMA_VERSION,
        "suite": SUITE.name,
        "why": SUITE.why,
        "device": device,
        "versions": facts["software"]["versions"],
        "settings": settings | ({"left_out": left_out} if left_out else {}),
        "results": found,
    }


def read(folder: Path) -> dict[str, dict]:
    """The facts of a call by their names.

    Raises:
        ValueError: some that are needed are missing.
    """
    facts = {r["case"]: r for r in protocol.records(folder / "facts.jsonl") if r["result"] == "ok"}
    if missing := {"software", "document"} - facts.keys():
        raise ValueError(f"{folder}/facts.jsonl has no {' and no '.join(sorted(missing))}")
    return facts


def publish(folder: Path, root: Path = results.RESULTS) -> list[Path]:
    """Copy a call's files to <root>/<device>, and write headline.json beside them.

    Args:
        folder: of a call's files.
        root: of all results.

    Returns:
        What was written; headline.json, if cases of that suite were measured, first.

    Raises:
        ValueError: facts of the device are missing, or the document breaks the schema.
    """
    facts = read(folder)
    found = document(folder, facts)
    written = [] if found is None else [results.write(found, root)]
    place = root / results.folder(facts["document"]["device"])
    place.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        written.append(Path(shutil.copyfile(path, place / path.name)))
    return written


def _case(fields: dict) -> Case:
    return Case(**{name: value for name, value in fields.items() if name != "id"})
