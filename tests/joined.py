"""Parity of the ops that run several recurrences in one launch; the rule is that of parity.py."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from parity import Case, check_sequence, grads_like, inputs_of, name_of, tf32_products
from tolerance import about, assert_parity

from seqkernels import reference
from seqkernels.cells import CELLS
from seqkernels.ops.sequence import reference_sequence
from seqkernels.ops.weights import bias_grads, weight_hh_grad


class Both:
    """The ops of both directions as those of one: the other direction runs on other numbers."""

    def __init__(self, run: Callable, run_back: Callable):
        self.run, self.run_back = run, run_back

    def forward(self, gates_x, weight_hh, bias_hh, *rest):
        """The sequence op's forward, as `check_sequence` calls it."""
        *states, lengths, batch_sizes, reset, reverse, save = rest
        torch.manual_seed(3)
        weights = [weight_hh, torch.randn_like(weight_hh) * 0.1]
        self.weights = weights[::-1] if reverse else weights
        self.biases = [] if bias_hh is None else [bias_hh, bias_hh]
        self.states = [_joined(s, reverse) for s in states]
        gates_x = _side_by_side(gates_x, reverse)
        resets = _two_resets(reset, reverse)
        arguments = (gates_x, self.weights, self.biases, *self.states, lengths, batch_sizes, resets)
        output, h_n, c_n, c_sequence, saved = self.run(*arguments, save)
        if save:
            self.saved = (output, c_sequence, saved)
        h_n, c_n = (_part(r, reverse) for r in (h_n, c_n))
        output, c_sequence, saved = (_half(r, reverse) for r in (output, c_sequence, saved))
        return output, h_n, c_n, c_sequence, saved

    def backward(self, grad_output, grad_h_n, grad_c_n, grad_c_sequence, *rest):
        """The sequence op's backward; what the forward gave is taken from its last call."""
        lengths, batch_sizes, reset, reverse = rest[-4:]
        grad_x, grad_h, grad_h_0, grad_c_0 = self.run_back(
            _side_by_side(grad_output, reverse),
            _joined(grad_h_n, reverse),
            _joined(grad_c_n, reverse),
            _side_by_side(grad_c_sequence, reverse),
            self.weights,
            self.biases,
            *self.states,
            *self.saved,
            lengths,
            batch_sizes,
            _two_resets(reset, reverse),
        )
        halves = [_half(g, reverse) for g in (grad_x, grad_h)]
        return *halves, _part(grad_h_0, reverse), _part(grad_c_0, reverse)


def _side_by_side(x, reverse):
    if x is None:
        return None
    other = torch.randn(x.shape).to(x)
    return torch.cat((other, x) if reverse else (x, other), -1)


def _joined(x, reverse):
    if x is None:
        return None
    other = torch.randn(x.shape).to(x)
    return torch.stack((other, x) if reverse else (x, other))


def _two_resets(reset, reverse):
    """Each direction has resets of its own: the other's are this one's from the end."""
    if reset is None:
        return None
    return torch.stack((reset.flip(0), reset) if reverse else (reset, reset.flip(0)))


def _half(x, reverse):
    return x.chunk(2, -1)[int(reverse)] if x.numel() else x


def _part(x, reverse):
    return x[int(reverse)] if x.numel() else x


def check_directions(
    cell: str,
    case: Case,
    dtype: torch.dtype,
    run: Callable,
    run_back: Callable,
    device: torch.device | str = "cpu",
    tf32: bool = False,
) -> None:
    """Assert the tolerance rule for every result and gradient of each direction."""
    for reverse in (False, True):
        both = Both(run, run_back)
        own = replace(case, reverse=reverse)
        check_sequence(cell, own, dtype, both.forward, both.backward, device, tf32)


def layer_inputs(cell: str, case: Case, dtype: torch.dtype, count: int, device="cpu"):
    """Inputs of `count` layers: gates_x of the first, lists of weights, stacked states, layout."""
    spec, h = CELLS[cell], case.hidden_size
    drawn = [inputs_of(cell, case, dtype, device) for _ in range(count)]
    gates_x, weight_hh, bias_hh, *states = zip(*(values for values, _ in drawn), strict=True)
    weight_ih = [torch.randn(spec.gates * h, h) * h**-0.5 for _ in range(count - 1)]
    bias_ih = [torch.randn(spec.gates * h) for _ in range(count - 1)]
    if cell == "rnn_relu":  # every layer away from the kink, and none larger than the one below
        weight_ih = [w.abs() * h**-0.5 for w in weight_ih]
        bias_ih = [b.abs() + 0.5 for b in bias_ih]
    weight_ih, bias_ih = ([t.to(dtype).to(device) for t in ts] for ts in (weight_ih, bias_ih))
    if not case.bias:  # a cell's parameters stay, which stand behind the recurrent bias
        bias_ih, bias_hh = [], bias_hh if spec.parameters else []
    states = [None if s[0] is None else torch.stack(s) for s in states]
    inputs = [gates_x[0], weight_ih, list(weight_hh), bias_ih, list(bias_hh), *states]
    return inputs, drawn[0][1][:3]


def layers_expected(cell, inputs, layout, dtype, tf32=False):
    """The reference's layers one after the other: results as the op gives them, and gradients.

    The gradients are those for `layer_grads`, by name; weights and biases of every layer.
    """
    spec = CELLS[cell]
    gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0 = (
        [_leaf(t, dtype) for t in v] if isinstance(v, list) else _leaf(v, dtype) for v in inputs
    )
    outputs, finals, c_sequences = [], [], []
    with tf32_products() if tf32 else contextlib.nullcontext():
        for i, weight in enumerate(weight_hh):
            projected = gates_x
            if i:
                projected = reference.F.linear(outputs[-1], weight_ih[i - 1])
                projected = projected + bias_ih[i - 1] if bias_ih else projected
            state = reference.split_state(spec, h_0[i], None if c_0 is None else c_0[i])
            output, final, c_sequence = reference_sequence(
                spec, projected, weight, bias_hh[i] if bias_hh else None, state, *layout, False
            )
            outputs.append(output)
            finals.append(final)
            c_sequences.append(c_sequence)
    found = {"output": torch.stack(outputs), "h_n": torch.stack([f[0] for f in finals])}
    if c_0 is not None:
        found["c_n"] = torch.stack([reference.others(f) for f in finals])
        found["c_sequence"] = torch.stack(c_sequences)
    grads = layer_grads(found, inputs[0].dtype)
    ends = [outputs[-1], found["h_n"], found.get("c_n"), c_sequences[-1]]
    pairs = [(e, g.to(dtype)) for e, g in zip(ends, grads, strict=True) if g is not None]
    wanted = {"gates_x": gates_x, "h_0": h_0} | ({} if c_0 is None else {"c_0": c_0})
    lists = {"weight_ih": weight_ih, "weight_hh": weight_hh, "bias_ih": bias_ih, "bias_hh": bias_hh}
    flat = [*wanted.values(), *(t for ts in lists.values() for t in ts)]
    back = iter(torch.autograd.grad([e for e, _ in pairs], flat, [g for _, g in pairs]))
    named = {f"grad_{name}": next(back) for name in wanted}
    for name, ts in lists.items():
        if ts:
            named[f"grad_{name}"] = torch.stack([next(back) for _ in ts])
    return {name: r.detach() for name, r in found.items()}, named


def _leaf(t, dtype):
    return None if t is None else t.detach().to(dtype).requires_grad_()


def layer_grads(results, dtype):
    """Random gradients of the last layer's output and c sequence and of all states, or None."""
    last = {n: r[-1] if n in ("output", "c_sequence") else r for n, r in results.items()}
    grads = grads_like([last.get(n) for n in ("output", "h_n", "c_n", "c_sequence")])
    return [None if g is None else g.to(dtype) for g in grads]


def layers_actual(cell, inputs, layout, results, run_back):
    """The gradients of the joint backward op, by the names of `layers_expected`."""
    spec = CELLS[cell]
    gates_x, weight_ih, weight_hh, _, bias_hh, h_0, c_0 = inputs
    names = ("output", "h_n", "c_n", "c_sequence")
    kept = {n: r for n, r in zip(names, results, strict=False) if r.numel()}
    output, _, _, c_sequence, saved = results
    grads = layer_grads(kept, gates_x.dtype)
    grad_x, grad_h, grad_h_0, grad_c_0 = run_back(
        *grads, weight_ih, weight_hh, bias_hh, h_0, c_0, output, c_sequence, saved, *layout
    )
    found = {"grad_gates_x": grad_x[0], "grad_h_0": grad_h_0}
    if c_0 is not None:
        found["grad_c_0"] = grad_c_0
    lists = {"weight_ih": [], "weight_hh": [], "bias_ih": [], "bias_hh": []}
    for i in range(len(weight_hh)):
        # In float64: the large products of the weights are torch's and not under test.
        wide = [t[i].double() if t.dim() > 1 else t for t in (grad_x, grad_h, saved, h_0, output)]
        lists["weight_hh"].append(weight_hh_grad(spec, *wide, *layout, False))
        if i:
            below = output[i - 1].double().flatten(0, -2)
            lists["weight_ih"].append(wide[0].flatten(0, -2).t() @ below)
        if bias_hh:
            biases = bias_grads(spec, *wide[:2])
            lists["bias_hh"].append(biases[1])
            lists["bias_ih"].extend(biases[:1] if i else [])
    stacks = {f"grad_{n}": torch.stack(ts).to(gates_x.dtype) for n, ts in lists.items() if ts}
    return found | stacks


def check_layers(
    cell: str,
    case: Case,
    dtype: torch.dtype,
    run: Callable,
    device: torch.device | str = "cpu",
    tf32: bool = False,
    count: int = 3,
    run_back: Callable | None = None,
) -> None:
    """Assert the tolerance rule for every layer's results, and gradients where `run_back` is."""
    found = []
    # As check_sequence: tiny cases are drawn several times, or the rule would compare luck.
    for _ in range(max(1, 64 // (case.steps * case.batch * case.hidden_size))):
        inputs, layout = layer_inputs(cell, case, dtype, count, device)
        results, inference = (run(*inputs, *layout, save) for save in (True, False))
        assert inference[3].numel() == inference[4].numel() == 0
        for one, other in zip(results[:3], inference[:3], strict=True):
            assert torch.equal(one, other), "results change without saving"
        theirs = layers_expected(cell, inputs, layout, dtype, tf32)
        exact = layers_expected(cell, inputs, layout, torch.float64)
        names = ("output", "h_n", "c_n", "c_sequence")
        ours = dict(zip(names, results[:4], strict=True)), {}
        if run_back is not None:
            ours = ours[0], layers_actual(cell, inputs, layout, results, run_back)
        found.append((ours, theirs, exact))
    facts = {"kernel": name_of(run), "cell": cell, "tf32": tf32, "case": asdict(case)}
    for part, direction in enumerate(("forward", "backward")[: 1 + (run_back is not None)]):
        for name in found[0][2][part]:
            ours, theirs, exact = (torch.stack([f[i][part][name] for f in found]) for i in range(3))
            with about(**facts, direction=direction):
                assert_parity(ours, theirs, exact, name)
