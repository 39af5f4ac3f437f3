"""Swap the recurrent layers and cells of a model for this package's, and back, in place."""

import warnings

import torch
from torch import nn

from .base import RecurrentLayer
from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN

_Table = dict[type[nn.Module], type[nn.Module]]

_OURS: _Table = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_TORCHS: _Table = {ours: theirs for theirs, ours in _OURS.items()}
_NAMES = {theirs.__name__ for theirs in _OURS}


def convert(model: nn.Module) -> nn.Module:
    """Make every LSTM, GRU, RNN and cell of `torch.nn` inside a model one of this package.

    The modules stay the same objects with the same parameters, buffers, hooks and training flag;
    what changes is their class. So optimisers, tied modules and references from elsewhere stay
    valid, and a model that is itself a layer is converted too.

    Args:
        model: any module; changed in place.

    Returns:
        The same model.

    Warns:
        UserWarning: layers that were left alone, with the reason: subclasses of torch's layers,
            whose forward this package does not know, and quantised ones.
    """
    return _swap(model, _OURS, "convert")


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: make every layer and cell of this package one of `torch.nn`, in place.

    Args:
        model: any module; changed in place.

    Returns:
        The same model.

    Warns:
        UserWarning: layers that were left alone: a GRU with reset="before", which `torch.nn` does
            not have, and subclasses of this package's layers.
    """
    return _swap(model, _TORCHS, "revert")


def _swap(model: nn.Module, table: _Table, action: str) -> nn.Module:
    left = []
    for name, module in model.named_modules():
        target = _target(type(module), table)
        reason = _obstacle(module, target, table)
        if reason is not None:
            kind = type(module).__name__
            left.append(f"{name!r} ({kind}): {reason}" if name else f"the {kind} itself: {reason}")
        elif target is not None:
            _change_class(module, target)
    if left:
        warnings.warn(f"{action} left alone {'; '.join(left)}", stacklevel=3)
    return model


def _target(kind: type[nn.Module], table: _Table) -> type[nn.Module] | None:
    """The class that modules of class `kind` get, or None."""
    if kind in table:
        return table[kind]
    base = kind.__bases__[0]
    if base in table and kind.__name__ == f"Parametrized{base.__name__}":
        # Each parametrised module has a class of its own, made by torch.nn.utils.parametrize, whose
        # properties compute the parametrised tensors. They move to a like class on the new base.
        members = {
            key: value
            for key, value in vars(kind).items()
            if key not in ("__dict__", "__weakref__", "__module__", "__doc__")
        }
        return type(f"Parametrized{table[base].__name__}", (table[base],), members)
    return None


def _obstacle(module: nn.Module, target: type[nn.Module] | None, table: _Table) -> str | None:
    """Why a recurrent module cannot be swapped; None if it can, or if it is nothing to swap."""
    if target is not None:
        if getattr(module, "reset", "after") != "after" and table is _TORCHS:
            return "torch.nn has no GRU that resets before the product"
        return None
    if isinstance(module, torch.jit.ScriptModule):
        scripted = module.original_name in _NAMES and table is _OURS
        return "it is compiled by TorchScript" if scripted else None
    kind = type(module)
    if kind.__module__.startswith("torch.ao.") and kind.__name__ in _NAMES:
        return "it is quantised" if table is _OURS else None
    for base in table:
        if isinstance(module, base):
            return f"its class derives from {base.__name__} and may compute something else"
    return None


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    """Make a module one of class `target`, whose parameters have the same names."""
    module.__class__ = target
    if isinstance(module, RecurrentLayer):
        # torch's list of weights, which these layers do not keep, would hold them alive.
        del module.__dict__["_flat_weights"]
        module._flat_weight_refs = []
    elif isinstance(module, nn.RNNBase):
        module._init_flat_weights()
