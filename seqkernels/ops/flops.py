"""What every op counts for under `torch.utils.flop_counter.FlopCounterMode`.

As torch counts, a multiply-add is two operations, and only matrix products count: pointwise ops
count for nothing. With R rows (T * N steps, or the packed total), G gates, I and H features:

* `<cell>_layer` and `<cell>_joined`: 2 R G H (I + H) for every layer and direction.
* `<cell>_sequence`, its backward, which carries the gradient from step to step, and
  `<cell>_lookup`: 2 R G H H. `<cell>_directions` and `<cell>_layers` add up their parts, the latter
  with the products between layers.
* `rows_product`: 2 R M K. `<cell>_step`: 2 N G H (I + H). `<cell>_cell` and its backward: 0.
* `<cell>_greedy`: the products of a step, times max_length: rows that end early are counted whole.

A formula sees shapes alone, so steps past a row's `lengths` count. What a registered backward does
beside these ops are products of torch, which torch counts. Torch's own oneDNN LSTM layer, which
inference uses here, has no formula in torch 2.13; it gets one.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from math import prod

import torch

from ..cells import CELLS

_MODULE = "torch.utils.flop_counter"
_Shape = tuple[int, ...]


def _products(rows: _Shape, *weights: _Shape | list[_Shape]) -> int:
    """A product of every row with every weight."""
    flat = (w for group in weights for w in (group if isinstance(group, list) else [group]))
    return 2 * prod(rows) * sum(map(prod, flat))


# Arguments are those of the ops, with shapes in place of tensors.


def _whole(x, weight_ih, weight_hh, *_, **__) -> int:
    """`layer`, `joined` and `step`."""
    return _products(x[:-1], weight_ih, weight_hh)


def _recurrence(gates_x, weight_hh, *_, **__) -> int:
    """`sequence` and `directions`."""
    return _products(gates_x[:-1], weight_hh)


# fmt: off
def _recurrence_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_hh, bias_hh,
                         h_0, c_0, output, *_, **__) -> int:
    # fmt: on
    return _products(output[:-1], weight_hh)


def _lookup(gates, symbols, weight_hh, *_, **__) -> int:
    return _products(symbols, weight_hh)


def _layers(gates_x, weight_ih, weight_hh, *_, **__) -> int:
    return _products(gates_x[:-1], weight_ih, weight_hh)


# fmt: off
def _layers_backward(grad_output, grad_h_n, grad_c_n, grad_c_sequence, weight_ih, weight_hh,
                     bias_hh, h_0, c_0, output, *_, **__) -> int:
    # fmt: on
    return _products(output[1:-1], weight_ih, weight_hh)


def _pointwise(*_, **__) -> int:
    return 0


# fmt: off
def _greedy(embedding, weight_ih, weight_hh, bias_ih, bias_hh, weight_out, bias_out, h_0, c_0,
            start, max_length, *_, **__) -> int:
    # fmt: on
    return _products((*start, max_length), weight_ih, weight_hh, weight_out)


def _rows_product(grads, x, *_, **__) -> int:
    return sum(2 * grad[1] * prod(part) for grad in grads for part in x)


def _onednn(x, weight_ih, weight_hh, *_, **__) -> int:
    return _products(x[:-1], weight_ih, weight_hh)


def _onednn_backward(*args, **keywords) -> int:
    """The gradients of the input, of the state from step to step, and of both weights."""
    return 2 * _onednn(*args, **keywords)


# By what follows the cell in an op's name, its backend's suffix left out.
_FORMULAS: dict[str, Callable[..., int]] = {
    "layer": _whole,
    "joined": _whole,
    "step": _whole,
    "sequence": _recurrence,
    "sequence_backward": _recurrence_backward,
    "directions": _recurrence,
    "directions_backward": _recurrence_backward,
    "layers": _layers,
    "layers_backward": _layers_backward,
    "lookup": _lookup,
    "cell": _pointwise,
    "cell_backward": _pointwise,
    "greedy": _greedy,
}
_TORCHS = {
    torch.ops.aten.mkldnn_rnn_layer: _onednn,
    torch.ops.aten.mkldnn_rnn_layer_backward: _onednn_backward,
}


def formula(name: str) -> Callable[..., int] | None:
    """The formula of the op `seqkernels::<name>`; None for one that computes nothing."""
    if name == "rows_product":
        return _rows_product
    # The longest name first: one cell's may begin with another's.
    for cell in sorted(CELLS, key=len, reverse=True):
        if name.startswith(f"{cell}_"):
            kind = name.removeprefix(f"{cell}_")
            end = "_backward" if kind.endswith("_backward") else ""
            return _FORMULAS.get(kind.split("_")[0] + end)
    return None


def register() -> None:
    """Give torch the formulas of all ops that have none; its counter must have been imported."""
    if torch.backends.cuda.is_built():
        # A counter copies the formulas when it is made, so an op that its first call defines would
        # not be counted. By name, since this package knows nothing of its backends.
        importlib.import_module(f"{__package__.rpartition('.')[0]}.triton")
    counter = sys.modules[_MODULE]
    found = dict(_TORCHS)
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, name = qualified.partition("::")
        if namespace == "seqkernels":
            found[getattr(torch.ops.seqkernels, name)] = formula(name)
    for op, own in found.items():
        if own is not None and op not in counter.flop_registry:
            counter.register_flop_formula(op)(own)


class _AfterImport:
    """A finder that has `register` called once the counter has been imported.

    Few programs count. Importing the counter imports Triton, up to 0.2 s that the others keep.
    """

    def find_spec(self, name, path=None, target=None):
        """What the other finders say; the loader runs `register` at its end."""
        if name != _MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                register()

            spec.loader.exec_module = exec_module
        return spec


def register_when_imported() -> None:
    """Register all formulas now if torch's counter is imported, else as soon as it is."""
    if _MODULE in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport())
