"""Load the compiled module once and remember why it is not there.

Importing `_C` registers the schemas and kernels of `torch.ops.seqkernels`. Without it the package
works on the reference recurrences; `python -m seqkernels info` prints the reason kept here.
"""

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  (its libraries must be loaded before the extension's)

REASON: str | None = None
C: ModuleType | None


def build_report() -> dict:
    """What setup.py recorded: compiled, cuda, and the reasons for what is missing."""
    path = Path(__file__).with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _unexpected_absence(package: Path) -> str | None:
    """A warning where nobody has said yet why there are no kernels; None where the build did."""
    if build_report().get("compiled") is False:
        return None
    here = package.parent.resolve()
    text = f"{package} has no kernels that this Python can load ({REASON}): slow recurrences run. "
    if not (here / "setup.py").exists():
        return text + "Install seqkernels again, for this Python and torch."
    for other in map(Path, sys.path):
        if other.resolve() != here and any((other / package.name).glob("_C*.so")):
            return text + (
                f"This source tree hides the package installed in {other}: start Python elsewhere, "
                "or compile here with `make build`."
            )
    return text + "Compile them with `make build` in the source tree."


try:
    from . import _C as C
except ImportError as error:
    C = None
    REASON = str(error)
    if _text := _unexpected_absence(Path(__file__).parent):
        warnings.warn(_text, RuntimeWarning, stacklevel=2)
