"""Tables and plots in the repository, written from the committed JSON and from nothing else.

In a Markdown file the text between `<!-- bench:NAME:begin -->` and `<!-- bench:NAME:end -->` is
written here. NAME is a suite for its summary, SUITE.full for the whole one with the plot,
`misses`, `predictions` of the headline suite, `recipes`, or for the pronunciation demo `g2p`,
`g2p.full` and `g2p.speed`.
"""

import os
import re
from pathlib import Path

from seqkernels import figures

from . import demo, recipes, results, tables
from .cases import SUITES
from .gpu.table import PREDICTED
from .plot import svg

ROOT = results.BENCH.parent
PAGES = ("README.md", "docs/benchmarks.md", "docs/frameworks.md", "docs/g2p.md", "bench/NOTES.md")
_BLOCK = re.compile(
    r"(<!-- bench:(?P<name>[\w.]+):begin -->\n).*?(<!-- bench:(?P=name):end -->)", re.DOTALL
)


def generate(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file and what has to stand in it.

    Args:
        root: of the repository.

    Raises:
        ValueError: a marker names no suite, or a result breaks the schema.
    """
    paths = results.stored(root / "bench" / "results")
    documents = {path: results.read(path) for path in paths}
    files = {path.with_suffix(".svg"): svg(document) for path, document in documents.items()}
    runs = _by_device(demo.stored(root / "bench" / "results"))
    trained = recipes.stored(root / "bench" / "results")
    files |= {folder / "g2p.svg": demo.plot(own) for folder, own in runs.items()}
    for name in PAGES:
        page = root / name
        if page.exists():
            text = page.read_text()
            files[page] = _BLOCK.sub(
                lambda match, page=page: (
                    f"{match[1]}{_block(match['name'], documents, runs, trained, page)}\n{match[3]}"
                ),
                text,
            )
    return files


def stale(root: Path = ROOT) -> list[str]:
    """Generated files that differ from their JSON, and plots without one."""
    files = generate(root)
    wrong = [
        f"{path.relative_to(root)} is not what its JSON says"
        for path, text in files.items()
        if not path.exists() or not _same(path.read_text(), text)
    ]
    orphans = set((root / "bench" / "results").glob("*/*.svg")) - files.keys()
    return wrong + [f"{path.relative_to(root)} has no JSON" for path in sorted(orphans)]


def _same(old: str, new: str) -> bool:
    """Whether a file need not be written again.

    Another version of matplotlib draws the same data as another text: then the data alone count.
    """
    (source, version), (new_source, new_version) = map(figures.recorded, (old, new))
    return old == new or (source == new_source != "" and version != new_version)


def write(root: Path = ROOT) -> list[Path]:
    """Write what is stale and return it."""
    changed = []
    for path, text in generate(root).items():
        if not path.exists() or not _same(path.read_text(), text):
            path.write_text(text)
            changed.append(path)
    return changed


def _by_device(runs: dict[Path, dict]) -> dict[Path, list[dict]]:
    folders: dict[Path, list[dict]] = {}
    for path, run in runs.items():
        folders.setdefault(path.parent, []).append(run)
    return folders


def _demo(form: str, runs: dict[Path, list[dict]], page: Path) -> str:
    if not runs:
        return "Not measured yet."
    parts = []
    for folder, own in runs.items():
        parts.append(demo.heading(own[0]))
        if form == "full":
            plot = Path(os.path.relpath(folder / "g2p.svg", page.parent)).as_posix()
            parts.append(f"![Word error rate over the minutes of training]({plot})")
        parts.append({"": demo.brief, "full": demo.full, "speed": demo.speeds}[form](own))
    return "\n\n".join(parts)


def _block(
    name: str,
    documents: dict[Path, dict],
    runs: dict[Path, list[dict]],
    trained: list[dict],
    page: Path,
) -> str:
    if name == "misses":
        return tables.misses(documents.values())
    if name == "predictions":
        return tables.predictions(PREDICTED)
    if name == "recipes":
        parts = (part for each in trained for part in (tables.heading(each), recipes.table(each)))
        return "\n\n".join(parts) or "Not measured yet."
    if name in ("g2p", "g2p.full", "g2p.speed"):
        return _demo(name.partition(".")[2], runs, page)
    suite, _, form = name.partition(".")
    if suite not in SUITES or form not in ("", "full"):
        raise ValueError(f"{page.name}: bench:{name} names no suite")
    chosen = {p: d for p, d in documents.items() if d["suite"] == suite}
    if not chosen:
        return "Not measured yet."
    parts = []
    for path, document in chosen.items():
        parts.append(tables.heading(document))
        if not form:
            parts.append(tables.summary(document))
            continue
        plot = Path(os.path.relpath(path.with_suffix(".svg"), page.parent)).as_posix()
        parts += [
            f"![Speed-up over torch.nn]({plot})",
            tables.full(document),
            "Speed-up over torch.nn of every contestant:",
            tables.others(document),
        ]
    return "\n\n".join(parts)
