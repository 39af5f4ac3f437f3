"""Turns the files of a call into results of the repository: a document, and the rest as it is."""

import shutil
from pathlib import Path

from .. import results, runner
from ..cases import SUITES, Case
from . import protocol

SUITE = SUITES["headline"]


def document(folder: Path) -> dict | None:
    """The headline suite's document of bench/schema.json, from facts.jsonl and ratios.jsonl.

    Args:
        folder: of a call's files.

    Returns:
        The document; None where no case of the suite was measured.

    Raises:
        ValueError: the facts that it needs are missing.
    """
    facts = {r["case"]: r for r in protocol.records(folder / "facts.jsonl") if r["result"] == "ok"}
    missing = {"software", "document"} - facts.keys()
    if missing:
        raise ValueError(f"{folder}/facts.jsonl has no {' and no '.join(sorted(missing))}")
    device, settings = (facts["document"][name] for name in ("device", "settings"))
    found = [
        runner.result(_case(measured["case"]), record["mode"], measured["contestants"], device)
        for record in protocol.records(folder / "ratios.jsonl")
        for measured in record.get("measured", ())
    ]
    if not found:
        return None
    # In the order of the suite: both modes of a case together, the shorter lengths last.
    found.sort(key=lambda r: -r["case"]["length"])
    ids = {r["case"]["id"] for r in found}
    left_out = [c.id for c in SUITE.cases if c.id not in ids]
    return {
        "schema": results.SCHEMA_VERSION,
        "suite": SUITE.name,
        "why": SUITE.why,
        "device": device,
        "versions": facts["software"]["versions"],
        "settings": settings | ({"left_out": left_out} if left_out else {}),
        "results": found,
    }


def publish(folder: Path, root: Path = results.RESULTS) -> list[Path]:
    """Write <root>/<device>/headline.json, copy the call's other files beside it.

    Args:
        folder: of a call's files.
        root: of all results.

    Returns:
        What was written.

    Raises:
        ValueError: the facts of the device are missing, or the document breaks the schema.
    """
    found = document(folder)
    if found is None:
        raise ValueError(f"{folder} holds no measured case of the suite {SUITE.name}")
    written = [results.write(found, root)]
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        written.append(Path(shutil.copy(path, written[0].parent / path.name)))
    return written


def _case(fields: dict) -> Case:
    return Case(**{name: value for name, value in fields.items() if name != "id"})
