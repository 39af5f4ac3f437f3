"""`patch`: the layers and cells of `torch.nn` itself, and their subclasses, on these kernels.

Their `forward` ends in a call of `_VF.lstm` or of a function like it, and `_VF` is a global name in
`torch.nn.modules.rnn`. That name is all that is replaced, by a module in which the functions of the
recurrent layers and cells are this package's. No class and no layer changes.
"""

import threading
import types
import warnings
from collections.abc import Callable

import torch
from torch.nn.modules import rnn

from . import torch_calls


class patch:  # noqa: N801
    """Make `torch.nn`'s own recurrent layers and cells, and their subclasses, run on this package.

    Call it once, or use it for a `with` block:

        with seqkernels.patch():
            model(x)

    Classes, parameters, hooks, pickles and checkpoints stay torch's, as only what `LSTM.forward`
    and the like call is exchanged. This holds for the whole process, in every thread. Calls and
    blocks count: torch's functions are back when the last block is left and `unpatch` has undone
    every call.

    torch's own function still computes, and raises its own errors, where the arguments do not fit
    together, a tensor is empty or of a class of its own, dtype or device has no kernel here, and in
    what is exported or traced, which so does not depend on this package.
    """

    def __init__(self) -> None:
        self._scoped = False
        with _lock:
            _holders.append(self)
            _install()

    def __enter__(self) -> "patch":
        with _lock:
            if self._scoped or self not in _holders:  # the same object, for another block
                _holders.append(self)
                _install()
            self._scoped = True
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            _holders.remove(self)
            self._scoped = self in _holders
            found = _uninstall()
        _report(found)


def unpatch() -> bool:
    """Undo the latest call of `patch` that is not a `with` block's.

    Returns:
        Whether torch.nn's layers still run on this package, for an earlier call or a block.

    Raises:
        RuntimeError: there is no such call.

    Warns:
        UserWarning: something else has been put in the place of torch's functions since, and stays.
    """
    with _lock:
        calls = [holder for holder in _holders if not holder._scoped]
        if not calls:
            raise RuntimeError("seqkernels.unpatch(): no call of seqkernels.patch() is in force")
        _holders.remove(calls[-1])
        left, found = bool(_holders), _uninstall()
    _report(found)
    return left


class _Functions(types.ModuleType):
    """`torch._VF`, or what stood in its place, with this package's recurrent functions.

    A module, because the compilers of torch treat it as they do `torch._VF`.

    Attributes:
        below: what stood there.
        on: false passes every call on.
    """

    def __init__(self, below: types.ModuleType) -> None:
        super().__init__("seqkernels._VF")
        self.below, self.on = below, False
        for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            for name, compute in ((cell, torch_calls.layer), (f"{cell}_cell", torch_calls.step)):
                function = _function(self, name, cell, compute)
                setattr(self, name, function)
                # What TorchScript takes a call of it for.
                torch.jit._builtins._register_builtin(function, f"aten::{name}")

    def __getattr__(self, name: str) -> object:
        return getattr(self.below, name)


_lock = threading.RLock()
_holders: list[patch] = []
# Never freed: TorchScript knows the functions by their addresses.
_made: list[_Functions] = []


def _install() -> None:
    """Put this package's functions in place, unless they are in force."""
    if any(made.on for made in _made):
        return
    found = rnn._VF
    if not isinstance(found, _Functions):
        found = next((made for made in _made if made.below is found), None)
        if found is None:
            found = _Functions(rnn._VF)
            _made.append(found)
    found.on = True
    rnn._VF = found


def _uninstall() -> bool:
    """Put back what stood there, if nobody holds the functions; whether something else stands."""
    if _holders:
        return False
    (found,) = (made for made in _made if made.on)
    found.on = False
    if rnn._VF is not found:
        return True
    rnn._VF = found.below
    return False


def _report(covered: bool) -> None:
    if covered:
        warnings.warn(
            "torch.nn.modules.rnn._VF was replaced after seqkernels.patch() and stays as it is; "
            "what seqkernels put there before passes every call on to torch's functions",
            stacklevel=3,
        )


def _function(functions: _Functions, name: str, cell: str, compute: Callable) -> Callable:
    """The function called `name` of a `_Functions`."""

    def call(*args, **keywords):
        results = compute(cell, *args) if functions.on and not keywords else None
        return getattr(functions.below, name)(*args, **keywords) if results is None else results

    # torch.compile breaks its graph at torch.nn's layers, and would compile what they call for each
    # size of each of them. It is run as it is, but where it is traced as a part of a graph.
    compiler = torch._C._dynamo.eval_frame
    skip = compiler._FrameAction.SKIP
    compiler.set_code_exec_strategy(call.__code__, compiler._FrameExecStrategy(skip, skip))
    return call
