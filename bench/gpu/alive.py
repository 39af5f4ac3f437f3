"""Every instantiation of every kernel once, against float64, by the rule of tests/tolerance.py.

Small sizes reach every exchange because the machine is made to plan as for a smaller device; each
case asserts that its plan takes the exchange that it is named after. What is riskiest on a device
comes first, what compiles for seconds last.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from pathlib import Path

import torch

from seqkernels.cells import CELLS

from .machine import Machine

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path += [str(TESTS / folder) for folder in (".", "decode", "triton")]

from decoders import CELLS as DECODED  # noqa: E402
from decoders import Sizes, some_clear_decoders, step_loop  # noqa: E402
from joined import check_directions, check_layers  # noqa: E402
from parity import MATHS, Case, check_sequence, recurrent_math  # noqa: E402
from tolerance import assert_parity, collected  # noqa: E402

FILE = "alive.jsonl"
LIMITS = {
    "one block": {},
    "cluster": {"max_cluster": 8, "max_units": 16},
    "L2": {"max_cluster": 1, "max_units": 16},
}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ROWS = {"one row": Sizes(1, 6, 20, 70, 2), "five rows": Sizes(5, 5, 10, 37, 2)}
TRITON = [
    f"{cell} {schedule}"
    for cell in ("lstm", "gru_reset_before")
    for schedule in ("sliced", "persistent", "stepwise")
]

_Check = Callable[[], None]


def narrow(machine: Machine) -> Case:
    """Sizes that one block holds."""
    return machine.full_or_tiny(Case(8, 9, 24), Case(2, 3, 24))


def wide(machine: Machine) -> Case:
    """Sizes that several blocks share: the last has units to spare, the second slice one row."""
    return machine.full_or_tiny(Case(8, 9, 72), Case(2, 3, 72))


def cases(machine: Machine) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Persistent kernels alone and joined, stepwise ones, greedy decoding, Triton."""
    for part in (persistent, stepwise, decoding, triton):
        for name, check in part(machine):
            yield name, partial(checked, check)


def checked(check: _Check) -> dict:
    """Run a check; the largest error of every quantity, torch's own, and the bound."""
    torch.manual_seed(0)
    failure = {}
    with collected() as records:
        try:
            check()
        except AssertionError as error:
            failure = {"result": "failed", "reason": str(error)[:2000]}
    if not records and not failure:
        failure = {"result": "failed", "reason": "nothing was compared"}
    worst: dict[str, dict] = {}
    for record in records:
        worst[record["quantity"]] = max(worst.get(record["quantity"], record), record, key=share)
    names = ("error", "torch_error", "limit")
    return {**failure, "errors": {q: [r[n] for n in names] for q, r in worst.items()}}


def share(record: dict) -> float:
    """Of the bound; what is not finite is beyond all."""
    return float("inf") if record["error"] is None else record["error"] / record["limit"]


def persistent(machine: Machine) -> Iterator[tuple[str, _Check]]:
    """Stacked layers in clusters, the default of deeper models; then every cell and format."""
    # A cooperative launch of clusters of 16 blocks.
    large = machine.full_or_tiny(Case(8, 16, 256), Case(2, 1, 256))
    check = partial(layers, machine, "lstm", "float16", "cluster", 2, large, {})
    yield "lstm float16 2 layers, cluster of 16", check
    for exchange, cell, math in product((*LIMITS, "pieces"), CELLS, MATHS):
        check = partial(sequence, machine, cell, math, exchange)
        yield f"{cell} {math} {exchange}", check
    for cell, (math, exchange) in product(CELLS, (("bfloat16", "cluster"), ("tf32", "L2"))):
        check = partial(directions, machine, cell, math, exchange)
        yield f"{cell} {math} both directions, {exchange}", check
    turn = cycle(("cluster", "L2"))
    for count, maths in ((2, MATHS), (4, ("float16",))):
        for (cell, math), exchange in zip(product(CELLS, maths), turn, strict=False):
            check = partial(layers, machine, cell, math, exchange, count, wide(machine))
            yield f"{cell} {math} {count} layers, {exchange}", check


def pair(machine: Machine, name: str) -> list[Callable]:
    """The forward and the backward op."""
    return [machine.op(f"{name}{end}") for end in ("", "_backward")]


def takes(machine: Machine, exchange: str, backward: bool, shape: tuple, **parts: int) -> None:
    """Assert that the plan of a shape exchanges as it is to."""
    cell, math, case = shape
    plan = machine.plan(cell, math, backward, case.batch, case.hidden_size, **parts)
    assert not plan["refusal"], plan["refusal"]
    found = "pieces" if plan["pieces"] > 1 else plan["exchange"]
    wanted = {"one block": "none"}.get(exchange, exchange)
    assert found == wanted, f"the plan is {plan['text']}, not {exchange}"


def sequence(machine: Machine, cell: str, math: str, exchange: str) -> None:
    """One layer, forward and backward; what is in pieces is the backward."""
    case = narrow(machine) if exchange == "one block" else wide(machine)
    shape = cell, math, case
    forward, backward = pair(machine, f"{cell}_sequence_persistent")

    def back(*arguments):
        limits = least_memory(machine, shape) if exchange == "pieces" else LIMITS[exchange]
        with machine.limits(**limits):
            takes(machine, exchange, True, shape)
            return backward(*arguments)

    own = "L2" if exchange == "pieces" else exchange
    with machine.limits(**LIMITS[own]), recurrent_math(math) as (dtype, tf32):
        takes(machine, own, False, shape)
        check_sequence(cell, case, dtype, forward, back, machine.device, tf32)


def least_memory(machine: Machine, shape: tuple) -> dict[str, int]:
    """Limits under which a block has just the memory that a backward needs: it is in pieces."""
    cell, math, case = shape
    for size in range(2 << 10, 227 << 10, 1 << 10):
        limits = LIMITS["L2"] | {"shared_per_block": size}
        with machine.limits(**limits):
            plan = machine.plan(cell, math, True, case.batch, case.hidden_size)
        if not plan["refusal"]:
            return limits
    raise AssertionError(f"no plan for the backward of {cell} {math}")


def directions(machine: Machine, cell: str, math: str, exchange: str) -> None:
    """Both directions of a layer in one launch."""
    case = wide(machine)
    with machine.limits(**LIMITS[exchange]), recurrent_math(math) as (dtype, tf32):
        for backward in (False, True):
            takes(machine, exchange, backward, (cell, math, case), directions=2)
        ops = pair(machine, f"{cell}_directions_persistent")
        check_directions(cell, case, dtype, *ops, machine.device, tf32)


def layers(
    machine: Machine,
    cell: str,
    math: str,
    exchange: str,
    count: int,
    case: Case,
    limits: dict[str, int] | None = None,
) -> None:
    """Layers that feed one another in one launch, forward and backward."""
    limits = LIMITS[exchange] if limits is None else limits
    with machine.limits(**limits), recurrent_math(math) as (dtype, tf32):
        for backward in (False, True):
            takes(machine, exchange, backward, (cell, math, case), layers=count)
        run, run_back = pair(machine, f"{cell}_layers_persistent")
        check_layers(cell, case, dtype, run, machine.device, tf32, count, run_back)


def stepwise(machine: Machine) -> Iterator[tuple[str, _Check]]:
    """A product and a cell kernel per step."""
    for cell, dtype in product(CELLS, DTYPES):
        ops = pair(machine, f"{cell}_sequence")
        check = partial(check_sequence, cell, narrow(machine), dtype, *ops, machine.device)
        yield f"{cell} {str(dtype).removeprefix('torch.')} stepwise", check


def decoding(machine: Machine) -> Iterator[tuple[str, _Check]]:
    """Fused greedy decoding: the tokens of a loop, and its states."""
    for cell, dtype, rows in product(DECODED, DTYPES[1:], ROWS):
        name = f"{cell} {str(dtype).removeprefix('torch.')} decoding, {rows}"
        yield name, partial(greedy, machine, cell, dtype, ROWS[rows])


def greedy(machine: Machine, cell: str, dtype: torch.dtype, sizes: Sizes, steps: int = 8) -> None:
    """Decode with weights under which every choice of a token is clear."""
    states = []  # ours, torch's and the exact ones of every decoder
    for decoder, expected in some_clear_decoders(cell, sizes, steps, dtype=dtype):
        arguments = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.detach().to(machine.device), decoder.op_arguments(steps)
        )
        tokens, lengths, _, *state = (t.cpu() for t in machine.op(f"{cell}_greedy")(*arguments))
        assert torch.equal(tokens, expected.tokens), "other tokens than the loop's"
        assert torch.equal(lengths, expected.lengths), "other lengths than the loop's"
        theirs = step_loop(decoder, steps).state if dtype == torch.float32 else None
        states.append((state, theirs, expected.state))
    for number in range(CELLS[cell].states):
        ours, exact = (torch.stack([each[i][number] for each in states]) for i in (0, 2))
        theirs = None
        if dtype == torch.float32:
            theirs = torch.stack([each[1][number] for each in states])
        assert_parity(ours, theirs, exact, ("h_n", "c_n")[number])


def announce_compilations() -> None:
    """Signs of life: a Triton kernel compiles for seconds, and a case has up to four."""
    from triton import knobs

    # Triton's hooks of a JIT function write its constants as JSON, and ours are functions.
    knobs.compilation.listener = lambda metadata, **_: print("compiled", metadata["name"])


def triton(machine: Machine) -> Iterator[tuple[str, _Check]]:
    """The schedules of Triton, for a pointwise cell and for the one with two stages."""
    import sanitized

    announce_compilations()
    checks = dict(sanitized.checks(machine.device))
    for name in TRITON:
        yield f"{name}, Triton", lambda name=name: checks[name]()
