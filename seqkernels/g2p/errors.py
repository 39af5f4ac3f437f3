"""Errors that the user can put right: printed as one sentence, without a traceback."""

import importlib
from types import ModuleType


class G2PError(Exception):
    """Bad input, a missing package or a file that cannot be used; the message says what to do."""


def require(package: str, purpose: str) -> ModuleType:
    """Import a package of the extra `g2p`.

    Args:
        package: its name.
        purpose: who needs it, as the message begins: "plots need".

    Raises:
        G2PError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise G2PError(f'{purpose} {package}: pip install "seqkernels[g2p]"') from error
