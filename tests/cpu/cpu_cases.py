"""Inputs of the CPU kernel tests, and the same call on the reference recurrences."""

from dataclasses import dataclass

import torch
from torch import Tensor

import seqkernels  # noqa: F401  (registers the ops)
from seqkernels.cells import CELLS
from seqkernels.ops.sequence import reference_sequence

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One call of a sequence op: T steps, N rows, H units, and how the rows lie in time."""

    steps: int
    batch: int
    hidden: int
    lengths: bool = False
    packed: bool = False
    reset: bool = False
    reverse: bool = False
    bias: bool = True

    def __str__(self) -> str:
        flags = [f for f in ("lengths", "packed", "reset", "reverse") if getattr(self, f)]
        return "-".join([f"T{self.steps}", f"N{self.batch}", f"H{self.hidden}", *flags])


LAYOUTS = [
    Case(7, 3, 5),
    Case(7, 3, 5, reverse=True),
    Case(9, 13, 37, lengths=True),
    Case(9, 13, 37, lengths=True, reverse=True),
    Case(9, 13, 37, packed=True),
    Case(9, 13, 37, packed=True, reverse=True),
    Case(9, 6, 20, reset=True),
    Case(9, 6, 20, reset=True, reverse=True),
    Case(9, 13, 37, lengths=True, reset=True),
    Case(9, 13, 37, lengths=True, reset=True, reverse=True),
]
SIZES = [
    Case(1, 1, 1),
    Case(1, 64, 16, bias=False),
    Case(4, 7, 100),
    Case(3, 2, 200),
    Case(2, 5, 650),
    Case(6, 130, 48),
]


def make_inputs(name: str, case: Case, dtype: torch.dtype) -> dict:
    """Random arguments of `<name>_sequence`, all but the flags, in values of `dtype`."""
    spec = CELLS[name]
    generator = torch.Generator().manual_seed(case.steps * 1000 + case.batch * 10 + case.hidden)
    T, N, H = case.steps, case.batch, case.hidden

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    lengths = batch_sizes = reset = None
    if case.lengths or case.packed:
        lengths = torch.randint(0 if case.lengths else 1, T + 1, (N,), generator=generator)
    rows: tuple[int, ...] = (T, N)
    if case.packed:
        lengths[0] = T
        batch_sizes = (lengths.unsqueeze(0) > torch.arange(T).unsqueeze(1)).sum(1)
        lengths, rows = None, (int(batch_sizes.sum()),)
    if case.reset:
        reset = torch.rand(T, N, generator=generator) < 0.3
    return {
        "gates_x": normal(*rows, spec.gates * H),
        "weight_hh": normal(spec.gates * H, H, scale=H**-0.5),
        "bias_hh": normal(spec.gates * H, scale=0.5) if case.bias else None,
        "h_0": normal(N, H),
        "c_0": normal(N, H) if spec.states > 1 else None,
        "lengths": lengths,
        "batch_sizes": batch_sizes,
        "reset": reset,
    }


def op(name: str):
    """The op `seqkernels::<name>`."""
    return getattr(torch.ops.seqkernels, name).default


def run_native(name: str, inputs: dict, reverse: bool) -> dict[str, Tensor]:
    """Results of the native op, without what the cell does not have."""
    output, h_n, c_n, c_sequence, _ = op(f"{name}_sequence")(*inputs.values(), reverse, True)
    found = {"output": output, "h_n": h_n}
    if CELLS[name].states > 1:
        found |= {"c_n": c_n, "c_sequence": c_sequence}
    return found


def run_reference(name: str, inputs: dict, reverse: bool) -> dict[str, Tensor]:
    """The same results from the reference recurrences, in the dtype of the inputs."""
    gates_x, weight_hh, bias_hh, h_0, c_0, *layout = inputs.values()
    state = (h_0,) if c_0 is None else (h_0, c_0)
    output, state, c_sequence = reference_sequence(
        CELLS[name], gates_x, weight_hh, bias_hh, state, *layout, reverse
    )
    found = {"output": output, "h_n": state[0]}
    if CELLS[name].states > 1:
        found |= {"c_n": state[1], "c_sequence": c_sequence}
    return found


def results_and_grads(run, name: str, inputs: dict, reverse: bool) -> dict[str, Tensor]:
    """What `run` returns and the gradients of a fixed function of ALL of it, by argument name."""
    inputs = {
        key: x.detach().clone().requires_grad_() if x is not None and x.is_floating_point() else x
        for key, x in inputs.items()
    }
    found = run(name, inputs, reverse)
    leaves = {k: x for k, x in inputs.items() if x is not None and x.requires_grad}
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        for x in found.values()
    ]
    grads = torch.autograd.grad(
        list(found.values()), list(leaves.values()), weights, allow_unused=True
    )
    found = found | {f"grad_{k}": g for k, g in zip(leaves, grads, strict=True)}
    return {k: x for k, x in found.items() if x is not None}
