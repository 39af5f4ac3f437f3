"""Run as a program: every CPU op at odd sizes, all memory at a page that may not be touched.

python tests/cpu/guard_probe.py before|behind|read-before|read-behind|read-behind-result

Prints each call before it is made, so that the last line names the op that a fault ended, and the
number of calls. The results must be those without guard pages, bit by bit.
"""

import ctypes
import faulthandler
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "decode")]

import guarding  # noqa: E402  isort: skip  (before seqkernels)
import torch  # noqa: E402
from cpu_cases import DTYPES, Case, make_inputs, op  # noqa: E402
from decoders import Decoder, Sizes  # noqa: E402

from seqkernels.cells import CELLS  # noqa: E402

SEQUENCES = (
    Case(1, 1, 1),
    Case(3, 2, 5, bias=False),
    Case(4, 13, 37, lengths=True),
    Case(4, 13, 37, packed=True, reverse=True),
    Case(3, 6, 19, reset=True, reverse=True),
    Case(2, 3, 131),
)
ROWS = ((1, 1), (3, 5), (2, 33), (5, 131))
STEPS = ((1, 1, 1), (2, 7, 5), (1, 37, 33), (3, 9, 131))
PRODUCTS = ((1, 1, 1), (7, 13, 5), (129, 25, 33), (3, 12, 1101))
DECODERS = (Sizes(1, 1, 1, 2, 1), Sizes(2, 33, 65, 131, 1), Sizes(13, 17, 37, 101, 2))


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 0.3).to(dtype)


def sequence_calls(name: str, dtype: torch.dtype):
    """Forward, forward that saves nothing, and backward of a sequence; the lookup."""
    spec = CELLS[name]
    for case in SEQUENCES:
        inputs = make_inputs(name, case, dtype)
        *given, lengths, batch_sizes, reset = inputs.values()
        layout = lengths, batch_sizes, reset, case.reverse
        for save in (False, True):
            yield f"{name}_sequence", (*given, *layout, save)
        gates_x, weight_hh, bias_hh, h_0, c_0 = given
        output, h_n, c_n, c_sequence, saved = op(f"{name}_sequence")(*given, *layout, True)
        two = spec.states > 1
        grads = [torch.randn_like(output), torch.randn_like(h_n)]
        grads += [torch.randn_like(c_n), torch.randn_like(c_sequence)] if two else [None, None]
        for chosen in (grads, [grads[0], None, None, None]):
            results = output, c_sequence, saved
            yield (
                f"{name}_sequence_backward",
                (
                    *(*chosen, weight_hh, bias_hh, h_0, c_0),
                    *(*results, *layout),
                ),
            )
        if batch_sizes is None and reset is None:
            table = random(7, gates_x.shape[-1], dtype=dtype)
            symbols = torch.randint(0, 7, (case.steps, case.batch))
            states = weight_hh, bias_hh, h_0, c_0
            yield f"{name}_lookup", (table, symbols, *states, lengths, case.reverse)


def cell_calls(name: str, dtype: torch.dtype):
    """A step without its products, forward and backward."""
    spec = CELLS[name]
    two = spec.states > 1
    for rows, hidden in ROWS:
        gates = [random(rows, spec.gates * hidden, dtype=dtype) for _ in range(2)]
        h, c, grad = (random(rows, hidden, dtype=dtype) for _ in range(3))
        state = (h, c) if two else (h, None)
        for save in (False, True):
            yield f"{name}_cell", (*gates, *state, save)
        new_h, new_c, saved = op(f"{name}_cell")(*gates, *state, True)
        for grad_c in (grad, None) if two else (None,):
            yield f"{name}_cell_backward", (grad, grad_c, *state, new_h, new_c, saved)


def step_calls(name: str, dtype: torch.dtype):
    """A step of few rows with its products."""
    spec = CELLS[name]
    for rows, size, hidden in STEPS:
        wide = spec.gates * hidden
        weights = random(wide, size, dtype=dtype), random(wide, hidden, dtype=dtype)
        biases = random(wide, dtype=dtype), random(wide, dtype=dtype)
        h, c = (random(rows, hidden, dtype=dtype) for _ in range(2))
        state = (h, c) if spec.states > 1 else (h, None)
        x = random(rows, size, dtype=dtype)
        for given, save in ((biases, True), ((None, None), False)):
            yield f"{name}_step", (x, *weights, *given, *state, save)


def greedy_calls(name: str, dtype: torch.dtype):
    for sizes in DECODERS:
        for bias in (True, False):
            decoder = Decoder(name, sizes, 0, dtype, bias)
            yield f"{name}_greedy", decoder.op_arguments(5, eos=1)


def product_calls(dtype: torch.dtype):
    for rows, columns, width in PRODUCTS:
        grad, x = random(rows, columns, dtype=dtype), random(rows, width, dtype=dtype)
        yield "rows_product", ([grad], [x])
        if columns > 2:  # columns of a wider matrix, where they are, and inputs in two parts
            yield "rows_product", ([grad[:, 1:], grad[:, :1]], [x[:2].clone(), x[2:].clone()])


def calls():
    """(name, arguments) of every call; arguments are made when it is asked for."""
    for dtype in DTYPES:
        for name, spec in CELLS.items():
            yield from sequence_calls(name, dtype)
            if spec.pointwise:
                yield from cell_calls(name, dtype)
                yield from greedy_calls(name, dtype)
            if spec.pointwise and dtype.itemsize >= 4:
                yield from step_calls(name, dtype)
        if dtype.itemsize >= 4:
            yield from product_calls(dtype)


def moved(value):
    """A copy in memory that is made now."""
    if isinstance(value, torch.Tensor):
        if value.is_contiguous():
            return value.clone(memory_format=torch.contiguous_format)
        # The rest of a wider tensor moves along.
        storage = value.untyped_storage().clone()
        made = value.new_empty(0)
        return made.set_(storage, value.storage_offset(), value.shape, value.stride())
    return type(value)(map(moved, value)) if isinstance(value, (list, tuple)) else value


def described(value):
    """Shapes in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return [described(v) for v in value] if isinstance(value, (list, tuple)) else value


def run(before: bool) -> int:
    """Make every call in the usual memory and guarded; the number of calls."""
    count = 0
    for name, arguments in calls():
        print(name, arguments[0][0].dtype, described(arguments), flush=True)
        with guarding.guarded(before):
            found = op(name)(*moved(arguments))
        expected = op(name)(*arguments)
        found, expected = ([r] if isinstance(r, torch.Tensor) else r for r in (found, expected))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num()), "another result"
        found = one = other = None
        guarding.check()
        count += 1
    return count


def touch(mode: str) -> None:
    """Read a byte that is next to an argument or a result."""
    before = mode == "read-before"
    with guarding.guarded(before):
        x = torch.randn(3, 20)
        if mode == "read-behind-result":
            x = op("rnn_tanh_cell")(x, x.clone(), x.clone(), None, False)[0]
    bytes_ = x.numel() * x.element_size()
    ctypes.string_at(x.data_ptr() - 1 if before else x.data_ptr() + bytes_, 1)


if __name__ == "__main__":
    faulthandler.enable()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    mode = sys.argv[1]
    if mode not in ("before", "behind"):
        touch(mode)
        sys.exit()
    counted = run(mode == "before")
    taken = guarding.library.workspaces_taken()
    print(json.dumps({"isa": op("cpu_isa")(), "calls": counted, "workspaces": taken}))
