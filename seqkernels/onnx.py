"""ONNX export: what `torch.onnx.export` needs to translate the ops of this package.

    import seqkernels.onnx

    table = seqkernels.onnx.table()
    torch.onnx.export(model, (x,), "model.onnx", dynamo=True, custom_translation_table=table)

A layer becomes ONNX's LSTM, GRU or RNN, one for each layer and direction, for every batch and
length where the shapes are dynamic. A cell becomes the arithmetic of its step. Translating needs
the packages onnx and onnxscript: `pip install "seqkernels[onnx]"`. Running the result does not need
this package.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cells import CELLS, CellSpec
from .ops import defined, get

try:
    import numpy as np
    import onnx  # noqa: F401  (torch's exporter asks for it)
    from onnxscript import ir
    from onnxscript import opset18 as op

    _MISSING = None
except ImportError as error:
    _MISSING = error

__all__ = ["table"]

# ONNX's op, and its attributes for each of D directions.
_OPS: dict[str, tuple[str, Callable[[int], dict]]] = {
    "lstm": ("LSTM", lambda d: {}),
    "gru": ("GRU", lambda d: {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", lambda d: {"linear_before_reset": 0}),
    "rnn_tanh": ("RNN", lambda d: {"activations": ["Tanh"] * d}),
    "rnn_relu": ("RNN", lambda d: {"activations": ["Relu"] * d}),
}
# Torch's gates in the order of ONNX's op, as ranges: of i, f, g, o first i, then o, then f and g;
# of r, z, n first z, then r, then n.
_ORDER = {"LSTM": ((0, 1), (3, 4), (1, 3)), "GRU": ((1, 2), (0, 1), (2, 3)), "RNN": ((0, 1),)}


def table() -> dict[Callable, Callable]:
    """The `custom_translation_table` of `torch.onnx.export` for models with layers of this package.

    What ONNX cannot express raises NotImplementedError inside the export, whose error repeats the
    reason: resets inside a sequence, packed input, the cell state of every step, greedy decoding.

    Returns:
        A function for every op that a model can contain, by op; more entries may be added.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    if _MISSING is not None:
        raise ImportError(
            f'ONNX export needs onnx and onnxscript: pip install "seqkernels[onnx]" ({_MISSING})'
        ) from _MISSING
    from . import triton  # noqa: F401  (defines its ops, without importing Triton)

    found = {"batch_sizes_on": _refusal("batch_sizes_on", _PACKED)}
    for name, spec in CELLS.items():
        found[f"{name}_layer"] = _layer(spec)
        found[f"{name}_joined"] = _joined(spec)
        found[f"{name}_step"] = _step(spec)
        found[f"{name}_greedy"] = _refusal(f"{name}_greedy", _GREEDY)
        for suffix in ("", "_persistent", "_triton"):
            found[f"{name}_sequence{suffix}"] = _sequence(spec, suffix)
            found[f"{name}_cell{suffix}"] = _cell(spec)
    return {get(name): translate for name, translate in found.items() if defined(name)}


_RESET = "it has no resets inside a sequence; export the model without `reset`, for one episode"
_PACKED = "it has no packed input; give the layer a padded input and `lengths`"
_C_SEQUENCE = "it gives the cell state of the last step alone; leave out `return_c_sequence`"
_GREEDY = "it has no such loop; export the model of one step and write the loop around it"


def _refuse(name: str, why: str) -> None:
    raise NotImplementedError(f"seqkernels::{name} has no form in ONNX: {why}")


def _refusal(name: str, why: str) -> Callable:
    def translate(*args, **keywords):
        _refuse(name, why)

    return translate


class _Results(tuple):
    """The first results of an op; whoever asks for those that ONNX does not give is told so."""

    name: str

    def __getitem__(self, index):
        if isinstance(index, int) and index >= len(self):
            _refuse(self.name, _C_SEQUENCE)
        return super().__getitem__(index)


def _results(name: str, *values) -> _Results:
    found = _Results(values)
    found.name = name
    return found


class _Weights(NamedTuple):
    """The weights of one layer in one direction, gates in torch's order; biases may be None."""

    ih: "ir.Value"
    hh: "ir.Value"
    bias_ih: "ir.Value | None"
    bias_hh: "ir.Value | None"


# Translations; their arguments are those of the ops, which csrc/ops.cpp and ops/ describe.


def _layer(spec: CellSpec) -> Callable:
    name = f"{spec.name}_layer"

    # fmt: off
    def translate(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
                  reverse, save, suffix):
        # fmt: on
        _check(name, batch_sizes, reset)
        weights = _Weights(weight_ih, weight_hh, bias_ih, bias_hh)
        return _results(name, *_one_direction(spec, x, weights, h_0, c_0, lengths, reverse))

    return translate


def _sequence(spec: CellSpec, suffix: str) -> Callable:
    name = f"{spec.name}_sequence{suffix}"

    # fmt: off
    def translate(gates_x, weight_hh, bias_hh, h_0, c_0, lengths, batch_sizes, reset, reverse,
                  save):
        # fmt: on
        _check(name, batch_sizes, reset)
        x, weight_ih, bias_ih = _projection(gates_x)
        weights = _Weights(weight_ih, weight_hh, bias_ih, bias_hh)
        return _results(name, *_one_direction(spec, x, weights, h_0, c_0, lengths, reverse))

    return translate


def _joined(spec: CellSpec) -> Callable:
    name = f"{spec.name}_joined"

    # fmt: off
    def translate(x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, batch_sizes, reset,
                  stacked, save, suffix, backward_apart):
        # fmt: on
        _check(name, batch_sizes, reset)
        none = [None] * len(weight_hh)
        weights = [
            _Weights(*part)
            for part in zip(weight_ih, weight_hh, bias_ih or none, bias_hh or none, strict=True)
        ]
        if not stacked:
            y, *states = _recurrence(spec, x, weights, h_0, c_0, lengths, "bidirectional")
            y = op.Transpose(y, perm=[0, 2, 1, 3])
            y = op.Reshape(y, _integers(0, 0, 2 * _hidden_size(weights[0])))
            return _results(name, y, *states)
        final = []
        for i, part in enumerate(weights):
            own = (s if s is None else op.Gather(s, _integers(i), axis=0) for s in (h_0, c_0))
            x, *states = _recurrence(spec, x, [part], *own, lengths, "forward")
            x = op.Squeeze(x, _integers(1))
            final.append(states)
        states = (op.Concat(*s, axis=0) for s in zip(*final, strict=True))
        return _results(name, x, *states)

    return translate


def _cell(spec: CellSpec) -> Callable:
    def translate(gates_x, gates_h, h, c, save):
        return _results(f"{spec.name}_cell", *_new_state(spec, gates_x, gates_h, h, c))

    return translate


def _step(spec: CellSpec) -> Callable:
    def translate(x, weight_ih, weight_hh, bias_ih, bias_hh, h, c, save):
        gates_x = op.Gemm(x, weight_ih, bias_ih, transB=1)
        gates_h = op.Gemm(h, weight_hh, bias_hh, transB=1)
        return _results(f"{spec.name}_step", *_new_state(spec, gates_x, gates_h, h, c))

    return translate


def _new_state(spec: CellSpec, gates_x, gates_h, h, c) -> tuple:
    """One step in plain arithmetic, as reference.py has it: (h,) or (h, c)."""
    if spec.name == "lstm":
        i, f, g, o = op.Split(op.Add(gates_x, gates_h), num_outputs=4, axis=1)
        kept, new = op.Mul(op.Sigmoid(f), c), op.Mul(op.Sigmoid(i), op.Tanh(g))
        c = op.Add(kept, new)
        return op.Mul(op.Sigmoid(o), op.Tanh(c)), c
    if spec.name == "gru":
        x_r, x_z, x_n = op.Split(gates_x, num_outputs=3, axis=1)
        h_r, h_z, h_n = op.Split(gates_h, num_outputs=3, axis=1)
        r, z = op.Sigmoid(op.Add(x_r, h_r)), op.Sigmoid(op.Add(x_z, h_z))
        n = op.Tanh(op.Add(x_n, op.Mul(r, h_n)))
        return (op.Add(n, op.Mul(z, op.Sub(h, n))),)
    gates = op.Add(gates_x, gates_h)
    return (op.Tanh(gates) if spec.name == "rnn_tanh" else op.Relu(gates),)


def _check(name: str, batch_sizes, reset) -> None:
    """Refuse what no recurrent op of ONNX has."""
    if reset is not None:
        _refuse(name, _RESET)
    if batch_sizes is not None:
        _refuse(name, _PACKED)


def _one_direction(spec, x, weights, h_0, c_0, lengths, reverse) -> list:
    """[y [T, N, H], h_n [N, H]] and, where the cell has it, c_n."""
    first = _integers(0)
    h_0, c_0 = (s if s is None else op.Unsqueeze(s, first) for s in (h_0, c_0))
    direction = "reverse" if reverse else "forward"
    y, *states = _recurrence(spec, x, [weights], h_0, c_0, lengths, direction)
    return [op.Squeeze(y, _integers(1)), *(op.Squeeze(s, first) for s in states)]


def _recurrence(
    spec: CellSpec, x, weights: Sequence[_Weights], h_0, c_0, lengths, direction: str
) -> list:
    """ONNX's recurrent op with D directions: [y [T, D, N, H], h_n [D, N, H]] and perhaps c_n.

    Args:
        spec: the cell.
        x: [T, N, I].
        weights: of every direction.
        h_0: [D, N, H].
        c_0: [D, N, H], or None.
        lengths: int64, [N], or None.
        direction: `forward`, `reverse` or `bidirectional`.
    """
    name, attributes = _OPS[spec.name]
    order = _ORDER[name]
    dtype, size = weights[0].hh.dtype, _hidden_size(weights[0])
    tensors = [
        x,
        _stacked([_in_order(order, w.ih, size) for w in weights]),
        _stacked([_in_order(order, w.hh, size) for w in weights]),
        _biases(order, weights, size, dtype),
        h_0,
    ] + ([c_0] if spec.states > 1 else [])
    # ONNX has them for bfloat16 since opset 22 alone; ours compute in float32 as well.
    half = dtype == ir.DataType.BFLOAT16
    if half:
        tensors = [t if t is None else op.Cast(t, to=ir.DataType.FLOAT) for t in tensors]
    ends = None if lengths is None else _sequence_lens(lengths)
    found = getattr(op, name)(
        *(*tensors[:4], ends, *tensors[4:]),
        direction=direction,
        hidden_size=size,
        **attributes(len(weights)),
    )
    if half:
        found = [op.Cast(t, to=dtype) for t in found]
    return list(found) if lengths is None else _ended(x, lengths, found, (h_0, c_0), dtype)


def _sequence_lens(lengths):
    """ONNX's `sequence_lens`, at least 1: what 0 means there is not said."""
    return op.Cast(op.Max(lengths, _integers(1)), to=ir.DataType.INT32)


def _ended(x, lengths, results, initial, dtype) -> list:
    """Zeros past each row's end, and the initial state of a row without steps.

    onnxruntime gives the former, but the standard does not say so.
    """
    y, *states = results
    steps = op.Squeeze(op.Shape(x, start=0, end=1))
    times = op.Range(_scalar(0), steps, _scalar(1))
    alive = op.Less(op.Unsqueeze(times, _integers(1)), op.Unsqueeze(lengths, _integers(0)))
    y = op.Where(op.Unsqueeze(alive, _integers(1, 3)), y, _scalar(0, dtype))
    began = op.Unsqueeze(op.Greater(lengths, _integers(0)), _integers(0, 2))
    return [y, *(op.Where(began, s, s_0) for s, s_0 in zip(states, initial, strict=False))]


def _hidden_size(weights: _Weights) -> int:
    return int(weights.hh.shape[1])


def _stacked(values: list):
    """[D, ...] of D tensors."""
    values = [op.Unsqueeze(value, _integers(0)) for value in values]
    return values[0] if len(values) == 1 else op.Concat(*values, axis=0)


def _in_order(order, rows, size: int):
    """Weights or a bias, [G*H, .], with the gates in ONNX's order."""
    if len(order) == 1:
        return rows
    ranges = [[_integers(end * size) for end in ends] for ends in order]
    return op.Concat(*(op.Slice(rows, *ends, _integers(0)) for ends in ranges), axis=0)


def _biases(order, weights: Sequence[_Weights], size: int, dtype):
    """ONNX's B, [D, 2*G*H]; None where there are no biases."""
    pairs = [(w.bias_ih, w.bias_hh) for w in weights]
    if all(bias is None for pair in pairs for bias in pair):
        return None
    zeros = _constant(np.zeros(max(end for _, end in order) * size), dtype)
    found = [[zeros if b is None else _in_order(order, b, size) for b in pair] for pair in pairs]
    return _stacked([op.Concat(*pair, axis=0) for pair in found])


def _projection(gates_x) -> tuple:
    """(x, weight_ih, bias_ih or None) of which gates_x [T, N, G*H] was made.

    An op that begins after the projection has it in the nodes before: x W^T, and perhaps a bias.
    ONNX's op begins with the projection, so it takes the place of those nodes. Where they are not
    as expected, ONNX's op projects with the unit matrix.
    """
    node, bias = gates_x.producer(), None
    if node is not None and node.op_type == "Add":
        product, bias = node.inputs
        node = None if product is None else product.producer()
    if node is not None and node.op_type == "MatMul":
        x, right = node.inputs
        transpose = right.producer()
        if transpose is not None and transpose.op_type == "Transpose":
            weight = transpose.inputs[0]
            whole = bias is None or bias.shape == weight.shape[:1]
            if _rank(x) == 3 and _rank(weight) == 2 and whole:
                return x, weight, bias
    return gates_x, _constant(np.eye(int(gates_x.shape[-1])), gates_x.dtype), None


def _rank(value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _constant(values, dtype):
    return op.Constant(value=ir.tensor(np.asarray(values).astype(dtype.numpy())))


def _integers(*values: int):
    """A vector of int64."""
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.int64)))


def _scalar(value: int, dtype=None):
    return _constant(value, dtype or ir.DataType.INT64)
