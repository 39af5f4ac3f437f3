"""Swap the recurrent layers and cells of a model for this package's, and back, in place."""

import warnings

import torch
from torch import nn

from . import tools
from .base import RecurrentLayer
from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN, form_repr

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
        UserWarning: layers that were left alone, with the reason and what to do: subclasses of
            torch's layers, whose forward this package does not know, quantised ones, and those that
            a tool has prepared that looks for their class.
    """
    return _swap(model, _OURS, "convert")


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: make every layer and cell of this package one of `torch.nn`, in place.

    Args:
        model: any module; changed in place.

    Returns:
        The same model.

    Warns:
        UserWarning: layers that were left alone: a GRU with reset="before" or update="replace",
            which `torch.nn` does not have, and subclasses of this package's layers.
    """
    return _swap(model, _TORCHS, "revert")


def _swap(model: nn.Module, table: _Table, action: str) -> nn.Module:
    left = []
    for name, module in model.named_modules():
        target = _target(type(module), table)
        reason = _obstacle(module, target, table)
        if reason is not None:
            kind = torch.typename(type(module))
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
        if table is _TORCHS and isinstance(module, GRU | GRUCell) and form_repr(module):
            form = form_repr(module).removeprefix(", ")
            return f"torch.nn has no GRU with {form}; it needs seqkernels wherever it runs"
        return tools.held(module) if table is _OURS else None
    if isinstance(module, torch.jit.ScriptModule):
        scripted = module.original_name in _NAMES and table is _OURS
        if not scripted:
            return None
        return "it is compiled by TorchScript; convert the model that it was compiled from"
    kind = type(module)
    if kind.__module__.startswith("torch.ao.") and kind.__name__ in _NAMES:
        text = "it is quantised and stays torch's; revert is not needed"
        return text if table is _OURS else None
    for base in table:
        if isinstance(module, base):
            text = f"its class derives from {_public(base)} and may compute something else"
            if table is _OURS:
                text += "; seqkernels.patch() runs it where it calls that class's forward"
            return text
    return None


def _public(kind: type) -> str:
    """The name by which users know a class of torch or of this package."""
    package = "torch.nn" if kind in _OURS else "seqkernels"
    return f"{package}.{kind.__name__}"


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    """Make a module one of class `target`, whose parameters have the same names."""
    module.__class__ = target
    if isinstance(module, RecurrentLayer):
        # torch's list of weights, which these layers do not keep, would hold them alive.
        del module.__dict__["_flat_weights"]
        module._flat_weight_refs = []
    elif isinstance(module, nn.RNNBase):
        module._init_flat_weights()
