"""What `make gpu-build` has made, and from which sources: build/gpu/build.json.

Torch-free: the build itself runs where there may be no torch.
"""

import hashlib
import json
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = Path("build", "gpu", "build.json")
INPUTS = ("setup.py", "csrc/**/*", "bench/gpu/*.cu", "bench/gpu/*.h")


def sources(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of everything that a carried build is compiled from."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in INPUTS for p in root.glob(pattern) if p.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def read(root: Path = ROOT) -> dict | None:
    """The manifest, or None where nothing was built."""
    path = root / FILE
    return json.loads(path.read_text()) if path.exists() else None


def write(facts: dict, files: list[Path], root: Path = ROOT) -> dict:
    """Record a build of the sources as they are now.

    Args:
        facts: commit, changed, python and archs.
        files: what was built, under `root`.
        root: the repository.
    """
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    found = {"sources": sources(root), **facts, "files": sizes}
    (root / FILE).write_text(json.dumps(found, indent=1) + "\n")
    return found


def refusal(root: Path = ROOT) -> str | None:
    """Why this interpreter cannot use the build that is there; None where it can."""
    found = read(root)
    if found is None:
        return f"there is no {FILE}"
    if found["sources"] != sources(root):
        return "the build is of other sources"
    if found["python"] != (own := sysconfig.get_config_var("SOABI")):
        return f"the build is for {found['python']}, this Python is {own}"
    if lost := [name for name in found["files"] if not (root / name).exists()]:
        return f"{lost[0]} of the build is missing"
    return None
