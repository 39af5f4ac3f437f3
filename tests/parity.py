"""Sequence and cell ops of any backend against the reference, by the rule of tolerance.py.

Results, final states and every gradient are compared: those of gates_x, the states, and the
recurrent weights and bias, which are made from what the backward op returns.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from tolerance import about, assert_parity
from torch import Tensor

from seqkernels import reference
from seqkernels.cells import CELLS
from seqkernels.ops.sequence import reference_sequence
from seqkernels.ops.weights import bias_grads, weight_hh_grad

MATHS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}


@contextlib.contextmanager
def recurrent_math(name: str):
    """(dtype, tf32) of a number format, with torch's switch for recurrent layers set to it."""
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        yield MATHS[name]
    finally:
        rnn.fp32_precision = before


@dataclass(frozen=True)
class Case:
    """Sizes and options of one sequence."""

    steps: int
    batch: int
    hidden_size: int
    lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    reset: bool = False
    reverse: bool = False
    bias: bool = True


def to_tf32(x: Tensor) -> Tensor:
    """Float32 rounded to 10 mantissa bits, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class _Tf32Linear(torch.autograd.Function):
    """x W^T as TF32 tensor cores compute it, both operands rounded, in the gradients too."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return to_tf32(x) @ to_tf32(weight).t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = to_tf32(grad.contiguous())
        rows = grad.flatten(0, -2)
        return grad @ to_tf32(weight), rows.t() @ to_tf32(x).flatten(0, -2)


@contextlib.contextmanager
def tf32_products():
    """The reference with torch's products in TF32, for devices whose torch has none."""

    class Functions:
        @staticmethod
        def linear(x, weight, bias=None):
            product = _Tf32Linear.apply(x.contiguous(), weight.contiguous())
            return product if bias is None else product + bias

    before, reference.F = reference.F, Functions
    try:
        yield
    finally:
        reference.F = before


def inputs_of(cell: str, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu"):
    """([gates_x, weight_hh, bias_hh, h_0, c_0], [lengths, batch_sizes, reset, reverse]).

    Parameters of the cell, between 0 and 1, follow the bias; c_0 are all states beside h.
    """
    spec, h = CELLS[cell], case.hidden_size
    rows = (sum(case.batch_sizes),) if case.batch_sizes else (case.steps, case.batch)

    def random(*shape, scale=1.0):
        return (torch.randn(shape) * scale).to(dtype).to(device)

    values = [
        random(*rows, spec.gates * h),
        random(spec.gates * h, h, scale=h**-0.5),
        random((spec.gates + spec.parameters) * h) if case.bias or spec.parameters else None,
        random(case.batch, h),
        random(case.batch, (spec.states - 1) * h) if spec.states > 1 else None,
    ]
    if spec.parameters:
        values[2][spec.gates * h :].sigmoid_()
    if cell == "rnn_relu":
        _away_from_the_kink(values)
    if cell == "slstm":
        _clear_of_a_tie(values)
    reset = (torch.rand(case.steps, case.batch) < 0.3).to(device) if case.reset else None
    lengths = None if case.lengths is None else torch.tensor(case.lengths, device=device)
    batch_sizes = None if case.batch_sizes is None else torch.tensor(case.batch_sizes)
    return values, [lengths, batch_sizes, reset, case.reverse]


def _away_from_the_kink(values) -> None:
    """Relu jumps in its derivative: make every gate clearly positive or clearly negative."""
    gates_x, weight_hh, bias_hh, h_0, _ = values
    off = torch.rand(gates_x.shape, device=gates_x.device) < 0.3
    gates_x.abs_().add_(0.5)[off] = -50
    weight_hh.abs_().mul_(weight_hh.shape[1] ** -0.5)
    h_0.abs_()
    if bias_hh is not None:
        bias_hh.abs_()


def _clear_of_a_tie(values) -> None:
    """The larger of two gates alone is given a gradient, and rounding must not choose which.

    i and f vary little, and f lies far above i or, together with all that m gathers, far below. The
    third state is a divisor.
    """
    gates_x, weight_hh, bias_hh, _, c_0 = values
    h = weight_hh.shape[1]
    c_0[:, h : 2 * h].abs_().add_(1)
    for vary in (gates_x[..., : 2 * h], weight_hh[: 2 * h], c_0[:, 2 * h :]):
        vary.mul_(0.25)
    if bias_hh is not None:
        bias_hh[: 2 * h].mul_(0.25)
    forget = gates_x[..., h : 2 * h]
    forget.add_(torch.where(torch.rand(forget.shape) < 0.5, 3.0, -40.0).to(forget))


def grads_like(results):
    """Random gradients of the results that exist; the same for every dtype."""
    generator = torch.Generator().manual_seed(5)
    return [
        None
        if r is None or r.numel() == 0
        else torch.randn(r.shape, generator=generator).to(r.device)
        for r in results
    ]


def expected(cell: str, values, layout, dtype: torch.dtype, tf32: bool = False):
    """(results, gradients) of the reference in `dtype`, by name."""
    spec = CELLS[cell]
    leaves = [None if v is None else v.detach().to(dtype).requires_grad_() for v in values]
    gates_x, weight_hh, bias_hh, h_0, c_0 = leaves
    with tf32_products() if tf32 else contextlib.nullcontext():
        output, final, c_sequence = reference_sequence(
            spec, gates_x, weight_hh, bias_hh, reference.split_state(spec, h_0, c_0), *layout
        )
    results = [output, final[0], reference.others(final), c_sequence]
    pairs = [
        (r, g.to(values[0].dtype).to(dtype))
        for r, g in zip(results, grads_like(results), strict=True)
        if g is not None
    ]
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs]))
    names = ("gates_x", "weight_hh", "bias_hh", "h_0", "c_0")
    grads = {
        f"grad_{n}": next(found) for n, leaf in zip(names, leaves, strict=True) if leaf is not None
    }
    names = ("output", "h_n", "c_n", "c_sequence")
    return {n: r.detach() for n, r in zip(names, results, strict=True) if r is not None}, grads


def actual(cell: str, values, layout, forward: Callable, backward: Callable):
    """(results, gradients) of a pair of sequence ops, by name; and the results without saving."""
    spec = CELLS[cell]
    gates_x, weight_hh, bias_hh, h_0, c_0 = values
    output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
    results = [output, h_n, c_n, c_sequence]
    grads = [None if g is None else g.to(gates_x.dtype) for g in grads_like(results)]
    grad_x, grad_h, grad_h_0, grad_c_0 = backward(
        *grads, weight_hh, bias_hh, h_0, c_0, output, c_sequence, saved, *layout
    )
    found = {"grad_gates_x": grad_x, "grad_h_0": grad_h_0}
    # In float64: the large products of the weights are torch's and not under test.
    wide = [t.double() for t in (grad_x, grad_h, saved, h_0, output)]
    dtype = gates_x.dtype
    found["grad_weight_hh"] = weight_hh_grad(spec, *wide, *layout).to(dtype)
    if bias_hh is not None:
        found["grad_bias_hh"] = bias_grads(spec, *wide[:2])[1].to(dtype)
    if c_0 is not None:
        found["grad_c_0"] = grad_c_0
    names = ("output", "h_n", "c_n", "c_sequence")
    kept = {n: r for n, r in zip(names, results, strict=True) if r.numel()}
    inference = forward(*values, *layout, False)
    return kept, found, dict(zip(names, inference, strict=False))


def check_sequence(
    cell: str,
    case: Case,
    dtype: torch.dtype,
    forward: Callable,
    backward: Callable,
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> None:
    """Assert the tolerance rule for every result and gradient of one case."""
    # The rule speaks of norms: of one or two numbers it would compare luck, so tiny cases are drawn
    # several times and their results joined.
    draws = max(1, 64 // (case.steps * case.batch * case.hidden_size))
    found = []
    for _ in range(draws):
        values, layout = inputs_of(cell, case, dtype, device)
        ours = actual(cell, values, layout, forward, backward)
        exact = expected(cell, values, layout, torch.float64)
        theirs = None if dtype == torch.float64 else expected(cell, values, layout, dtype, tf32)
        check_exact_facts(case, layout[0], *ours)
        found.append(({**ours[0], **ours[1]}, theirs and {**theirs[0], **theirs[1]}, exact))
    facts = {"kernel": name_of(forward), "cell": cell, "tf32": tf32, "case": asdict(case)}
    for name in found[0][0]:
        ours = torch.stack([f[0][name] for f in found])
        theirs = None if found[0][1] is None else torch.stack([f[1][name] for f in found])
        exact = torch.stack([{**f[2][0], **f[2][1]}[name] for f in found])
        with about(**facts, direction="backward" if name in found[0][2][1] else "forward"):
            assert_parity(ours, theirs, exact, name)


def check_gradients(
    cell: str, case: Case, forward: Callable, backward: Callable, **options
) -> None:
    """`gradcheck` in float64 of all results in all floating inputs, parameters included.

    Args:
        cell: a key of `CELLS`.
        case: tiny sizes, since both ops run for every number of their inputs or results.
        forward: a sequence op.
        backward: its backward.
        options: further arguments of `gradcheck`.
    """
    values, layout = inputs_of(cell, case, torch.float64)
    leaves = [v.requires_grad_() for v in values if v is not None]

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *leaves):
            given = [*leaves, None][:5]
            *results, saved = forward(*given, *layout, True)
            ctx.save_for_backward(*leaves, results[0], results[3], saved)
            return tuple(r for r in results if r.numel())

        @staticmethod
        def backward(ctx, *grads):
            *leaves, output, c_sequence, saved = ctx.saved_tensors
            given = [*leaves, None][:5]
            kept = (*given[1:], output, c_sequence, saved, *layout)
            found = backward(*[*grads, None, None][:4], *kept)
            return _gradients(cell, given, found, saved, output, layout)[: len(leaves)]

    torch.autograd.gradcheck(Recurrence.apply, leaves, **options)


def _gradients(cell, given, found, saved, output, layout):
    """Of gates_x, weight_hh, bias_hh and the states, from what a backward op returns."""
    spec, (_, _, _, h_0, _), (grad_x, grad_h, *states) = CELLS[cell], given, found
    weight = weight_hh_grad(spec, grad_x, grad_h, saved, h_0, output, *layout)
    return (grad_x, weight, bias_grads(spec, grad_x, grad_h)[1], *states)


def name_of(op: Callable) -> str:
    """What a record calls a forward: an op by its own name, without library and overload."""
    return str(op).split(".")[1] if isinstance(op, torch._ops.OpOverload) else op.__qualname__


def check_exact_facts(case: Case, lengths: Tensor | None, results, grads, inference) -> None:
    """What holds to the last bit: inference equals training, and ended rows are zeros."""
    for name in ("output", "h_n", "c_n"):
        if name in results:
            assert torch.equal(inference[name], results[name]), f"{name} changes without saving"
    assert inference["c_sequence"].numel() == 0
    if lengths is not None:
        steps = torch.arange(case.steps, device=lengths.device).unsqueeze(-1)
        ended = steps >= lengths
        assert not results["output"][ended].any(), "output past a row's end"
        assert not grads["grad_gates_x"][ended].any(), "gate gradients past a row's end"


def check_cell(
    cell: str,
    rows: int,
    hidden_size: int,
    dtype: torch.dtype,
    forward: Callable,
    backward: Callable,
    device: torch.device | str = "cpu",
) -> None:
    """Assert the tolerance rule for one pointwise step and its gradients."""
    spec = CELLS[cell]

    def random(*shape):
        return torch.randn(shape).to(dtype).to(device)

    states = [random(rows, hidden_size) for _ in range(spec.states)]
    gates = [random(rows, spec.gates * hidden_size) for _ in range(2)]
    grads = [random(rows, hidden_size) for _ in range(spec.states)]

    def reference_in(kind):
        leaves = [t.detach().to(kind).requires_grad_() for t in (*gates, *states)]
        found = reference.cell(cell, *leaves[:2], tuple(leaves[2:]))
        back = torch.autograd.grad(
            found, leaves, [g.to(kind) for g in grads], allow_unused=True, materialize_grads=True
        )
        return [t.detach() for t in (*found, *back)]

    h, c = (*states, None)[:2]
    new_h, new_c, saved = forward(*gates, h, c, True)
    two = spec.states > 1
    grad_x, grad_h_gates, grad_h, grad_c = backward(
        grads[0], grads[1] if two else None, h, c, new_h, new_c, saved
    )
    if not spec.separate_columns:
        grad_h_gates = grad_x
    found = [new_h, *([new_c] if two else []), grad_x, grad_h_gates, grad_h]
    found += [grad_c] if two else []
    names = ["new_h", *(["new_c"] if two else [])]
    names += ["grad_gates_x", "grad_gates_h", "grad_h", "grad_c"]
    exact = reference_in(torch.float64)
    theirs = reference_in(dtype) if dtype != torch.float64 else [None] * len(exact)
    facts = {"kernel": name_of(forward), "cell": cell, "tf32": False}
    facts["case"] = {"rows": rows, "hidden_size": hidden_size}
    for name, ours, their, right in zip(names, found, theirs, exact, strict=False):
        with about(**facts, direction="backward" if name.startswith("grad_") else "forward"):
            assert_parity(ours, their, right, name)
    assert torch.equal(forward(*gates, h, c, False)[0], new_h)
