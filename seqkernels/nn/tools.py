"""Tools that look for the classes of `torch.nn`: say so where one would pass a layer by."""

import sys
import warnings
from types import FrameType

from torch import nn


def set_attribute(module: nn.Module, name: str, value: object) -> None:
    """`module.name = value`; warns where torch's quantisation is about to leave the module alone.

    It gives every module of a model its `qconfig`, then exchanges those of the classes it knows.
    This is the `__setattr__` of the layers and cells.
    """
    if name == "qconfig":
        _warn_of_quantisation(module, value, sys._getframe(1))
    nn.Module.__setattr__(module, name, value)


def _warn_of_quantisation(module: nn.Module, value: object, frame: FrameType) -> None:
    """Warn if module was to be quantised: it gets a qconfig, or torch's class in its place would.

    Args:
        module: a layer or cell of this package.
        value: its new qconfig; None where the class of the module was not asked for.
        frame: of the function that sets it.
    """
    bases = (c.__name__ for c in type(module).__mro__ if c.__module__.startswith("seqkernels."))
    kind = next(name for name in bases if hasattr(nn, name))
    wanted = _is_qconfig(value)
    if frame.f_globals.get("__name__", "").startswith("torch.ao.quantization"):
        asked = frame.f_locals.get("qconfig_dict")
        wanted = wanted or isinstance(asked, dict) and getattr(nn, kind) in asked
    if not wanted or kind == "RNN":  # torch has no quantised RNN
        return
    level = 3
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"seqkernels.{kind} is not quantised: torch.ao.quantization looks for torch.nn.{kind}. "
        "Call seqkernels.revert(model) first",
        stacklevel=level,
    )


def _is_qconfig(value: object) -> bool:
    return type(value).__module__.startswith("torch.ao.quantization")


# Where what quantises a model calls itself; the function that is deprecated there has a wrapper.
_INSIDE = ("torch.", "typing_extensions", "warnings")


def held(module: nn.Module) -> str | None:
    """Why a layer or cell of `torch.nn` should keep its class for a tool's sake, or None."""
    if _is_qconfig(getattr(module, "qconfig", None)):
        return (
            "it is prepared for quantisation, which looks for its class; seqkernels.patch() runs "
            "it until then"
        )
    for hook in module._forward_hooks.values():
        if (getattr(hook, "__module__", None) or "").split(".")[0] == "opacus":
            return "opacus has hooks on it and looks for its class; unwrap the model first"
    return None
