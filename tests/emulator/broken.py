"""Copies of the kernels' headers with one text replaced: a planted bug."""

import hashlib
import shutil
from pathlib import Path
from typing import Protocol

from emulator import CACHE, ROOT


class Replacement(Protocol):
    """One text of one header of csrc/cuda, and what stands there instead."""

    file: str
    old: str
    new: str


def altered(bug: Replacement) -> Path:
    """A copy of the headers with the bug, named by its content."""
    text = (ROOT / "csrc" / "cuda" / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} must hold this once: {bug.old}"
    text = text.replace(bug.old, bug.new)
    headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.h")]
    key = hashlib.sha256(text.encode() + b"".join(h.read_bytes() for h in sorted(headers)))
    tree = CACHE / f"altered-{key.hexdigest()[:20]}"
    for header in headers:
        copy = tree / header.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(header, copy)
    (tree / "csrc" / "cuda" / bug.file).write_text(text)
    return tree
