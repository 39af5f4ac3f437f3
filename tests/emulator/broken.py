"""Copies of the kernels' headers with one text replaced: a planted bug."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from emulator import CACHE, ROOT, build


class Replacement(Protocol):
    """One text of one header of csrc/cuda, and what stands there instead."""

    file: str
    old: str
    new: str
    sanitizer: str | None


def altered(bug: Replacement) -> Path:
    """A copy of the headers with the bug, named by its content."""
    (broken,) = ROOT.glob(f"csrc/cuda/**/{bug.file}")
    text = broken.read_text()
    assert text.count(bug.old) == 1, f"{bug.file} must hold this once: {bug.old}"
    text = text.replace(bug.old, bug.new)
    headers = [
        h for place in ("*.h", "cells/*.h", "cuda/**/*.h") for h in ROOT.glob(f"csrc/{place}")
    ]
    key = hashlib.sha256(text.encode() + b"".join(h.read_bytes() for h in sorted(headers)))
    tree = CACHE / f"altered-{key.hexdigest()[:20]}"
    if tree.exists():
        return tree
    CACHE.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=CACHE))
    for header in headers:
        copy = part / header.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(header, copy)
    (part / broken.relative_to(ROOT)).write_text(text)
    with contextlib.suppress(OSError):  # another process was first
        part.rename(tree)
    return tree


def libraries(source: str, bugs: Iterable[Replacement]) -> dict:
    """Builds of a source by (bug, sanitizer): unbroken, for the race checker too, and every bug.

    Everything is compiled here, two at a time.
    """

    def compiled(wanted):
        bug, sanitizer = wanted
        return build([source], sanitizer=sanitizer, tree=ROOT if bug is None else altered(bug))

    wanted = [(None, None), (None, "thread"), *((bug, bug.sanitizer) for bug in bugs)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(compiled, wanted), strict=True))
