"""Load the compiled module once and remember why it is not there.

Importing `_C` registers the schemas and kernels of `torch.ops.seqkernels`. Without it the package
works on the reference recurrences; `python -m seqkernels info` prints the reason kept here.
"""

import json
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  (its libraries must be loaded before the extension's)

REASON: str | None = None
C: ModuleType | None

try:
    from . import _C as C
except ImportError as error:
    C = None
    REASON = str(error)


def build_report() -> dict:
    """What setup.py recorded: compiled, cuda, and the reasons for what is missing."""
    path = Path(__file__).with_name("_build.json")
    return json.loads(path.read_text()) if path.exists() else {}
