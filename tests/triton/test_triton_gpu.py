"""What only a GPU can say of the Triton kernels: numbers at full size, races, recompilation."""

import pytest
import torch
from gpu import require_cuda
from tolerance import about, assert_parity

from seqkernels import functional, reference
from seqkernels.cells import CELLS

pytestmark = pytest.mark.cuda

# Storage dtype, and how float32 multiplies: the switch is of float32 alone.
MODES = {
    "fp32-ieee": (torch.float32, "ieee"),
    "fp32-tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}
# Odd, small, shared by a group, and too large to stay on chip: T, N, H.
SIZES = {
    "T100-N33-H130": (100, 33, 130),
    "T7-N3-H5": (7, 3, 5),
    "T64-N16-H512": (64, 16, 512),
    "T32-N64-H1024": (32, 64, 1024),
    "T16-N200-H650": (16, 200, 650),
}


@pytest.fixture
def device():
    return require_cuda("runs Triton kernels")


@pytest.fixture
def set_precision():
    """A function that sets the float32 products of ours and of the reference the same way."""
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.fp32_precision

    def change(mode: str) -> None:
        rnn.fp32_precision = matmul.fp32_precision = mode

    yield change
    rnn.fp32_precision, matmul.fp32_precision = before


def inputs_of(cell, steps, batch, hidden_size, dtype, device):
    """gates_x, weight_hh, bias_hh, h_0, c_0 or None."""
    spec = CELLS[cell]
    shapes = [(steps, batch, spec.gates * hidden_size), (spec.gates * hidden_size, hidden_size)]
    shapes += [(spec.gates * hidden_size,)] + [(batch, hidden_size)] * spec.states
    found = [torch.randn(s, device=device) for s in shapes]
    found[1] /= hidden_size**0.5
    return [x.to(dtype) for x in found] + [None] * (2 - spec.states)


def run(op, inputs, layout, grads=None):
    """Results of a sequence op, and its gradients where asked for."""
    x = [None if t is None else t.detach().clone().requires_grad_() for t in inputs]
    results = op(*x, *layout, True)
    if grads is None:
        return [r.detach() for r in results]
    outputs = [results[0], results[1]]
    wanted = [t for t in x if t is not None]
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, wanted, grads))


def reference_op(cell):
    """The reference behind the signature of a sequence op."""

    def op(gates_x, weight, bias, h_0, c_0, lengths, batch_sizes, reset, reverse, save):
        state = (h_0,) if c_0 is None else (h_0, c_0)
        output, final, _ = reference.sequence(
            cell, gates_x, weight, bias, state, lengths=lengths, reset=reset, reverse=reverse
        )
        return output, final[0]

    return op


def op_of(cell):
    import seqkernels.triton  # noqa: F401  (defines the ops)

    return getattr(torch.ops.seqkernels, f"{cell}_sequence_triton")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_parity_at_full_size(device, set_precision, cell, mode, size):
    dtype, precision = MODES[mode]
    set_precision(precision)
    steps, batch, hidden_size = SIZES[size]
    inputs = inputs_of(cell, steps, batch, hidden_size, dtype, device)
    lengths = torch.randint(0, steps + 1, (batch,), device=device)
    layout = (lengths, None, None, size == "T64-N16-H512")
    grads = [
        torch.randn(steps, batch, hidden_size, device=device).to(dtype),
        torch.randn(batch, hidden_size, device=device).to(dtype),
    ]
    ours = run(op_of(cell), inputs, layout, grads)
    theirs = run(reference_op(cell), inputs, layout, grads)
    wide = [None if x is None else x.double() for x in inputs]
    expected = run(reference_op(cell), wide, layout, [g.double() for g in grads])
    facts = {"kernel": f"{cell}_sequence_triton", "cell": cell, "tf32": precision == "tf32"}
    for i, (a, b, c) in enumerate(zip(ours, theirs, expected, strict=True)):
        with about(**facts, case=size, direction="backward" if i > 1 else "forward"):
            assert_parity(a, b, c, f"{cell} {size}: result {i}")
    again = run(op_of(cell), inputs, layout, grads)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)), "not bit-equal"


@pytest.mark.parametrize("hidden_size", [256, 255])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_every_candidate_plan_agrees(device, cell, hidden_size):
    """Plans that only tuning would take are right too."""
    from seqkernels.triton import launch
    from seqkernels.triton.estimate import device_of
    from seqkernels.triton.plan import STEPWISE, candidates

    inputs = inputs_of(cell, 20, 40, hidden_size, torch.float16, device)
    wide = [None if x is None else x.double() for x in inputs]
    layout = (None, None, None, False)
    grads = [torch.randn(s, device=device) for s in ((20, 40, hidden_size), (40, hidden_size))]
    grads = [g.half() for g in grads]
    expected = run(reference_op(cell), wide, layout, [g.double() for g in grads])
    theirs = run(reference_op(cell), inputs, layout, grads)
    facts = device_of(torch.device("cuda", 0))
    plans = candidates(cell, "forward", 2, "ieee", 40, hidden_size, facts)
    assert len(plans) > 4 and STEPWISE in plans
    for plan in plans:
        ours = launch.forward(cell, *inputs, *layout, True, plan=plan)[0]
        assert_parity(ours, theirs[0], expected[0], f"{cell} {plan}")
    output, _, _, c_sequence, saved = launch.forward(cell, *inputs, *layout, True)
    kept = (*inputs[1:], output, c_sequence, saved, *layout)
    for plan in candidates(cell, "backward", 2, "ieee", 40, hidden_size, facts):
        ours = launch.backward(cell, *grads, None, None, *kept, plan=plan)[0]
        assert_parity(ours, theirs[2], expected[2], f"{cell} backward {plan}")


def test_long_runs_are_bit_equal(device):
    """A race in the exchange shows as a difference between runs."""
    inputs = inputs_of("lstm", 1000, 16, 768, torch.float16, device)
    layout = (None, None, None, False)
    first = run(op_of("lstm"), inputs, layout)
    for _ in range(10):
        again = run(op_of("lstm"), inputs, layout)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_packed_and_reset_match_the_reference(device, set_precision):
    set_precision("ieee")
    inputs = inputs_of("gru", 9, 6, 100, torch.float32, device)
    reset = torch.rand(9, 6, device=device) < 0.3
    layout = (None, None, reset, True)
    wide = [None if x is None else x.double() for x in inputs]
    ours = run(op_of("gru"), inputs, layout)
    theirs, expected = (run(reference_op("gru"), x, layout) for x in (inputs, wide))
    for i in range(2):
        assert_parity(ours[i], theirs[i], expected[i], f"reset: result {i}")
    lengths = torch.tensor([9, 7, 7, 4, 2, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs[0], lengths)
    layout = (None, packed.batch_sizes, None, True)
    output, h_n, *_ = op_of("gru")(packed.data, *inputs[1:], *layout, True)
    padded = run(op_of("gru"), inputs, (lengths.to(device), None, None, True))
    assert torch.equal(h_n, padded[1])
    again = torch.nn.utils.rnn.pack_padded_sequence(padded[0], lengths)
    assert torch.equal(output, again.data)


def test_nothing_recompiles_by_shape(device):
    from triton import knobs

    compiled = []

    # Also of what lies in the cache. Hooks of a JIT function cannot show our constants, functions.
    def note(metadata, **_):
        compiled.append(metadata["name"])

    op = op_of("lstm")
    layout = (None, None, None, False)
    grads = [torch.ones(3, 17, 512, device=device), torch.ones(17, 512, device=device)]
    run(op, inputs_of("lstm", 3, 17, 512, torch.float32, device), layout, grads)
    kept, knobs.compilation.listener = knobs.compilation.listener, note
    try:
        for steps, batch in ((1, 32), (2, 17), (16, 18), (100, 31)):
            grads = [
                torch.ones(steps, batch, 512, device=device),
                torch.ones(batch, 512, device=device),
            ]
            run(op, inputs_of("lstm", steps, batch, 512, torch.float32, device), layout, grads)
    finally:
        knobs.compilation.listener = kept
    assert not compiled


@pytest.mark.parametrize("schedule", ["sliced", "persistent", "stepwise"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_a_graph_can_be_captured(device, cell, schedule):
    from seqkernels.triton import launch
    from seqkernels.triton.estimate import device_of
    from seqkernels.triton.plan import candidates

    inputs = inputs_of(cell, 12, 16, 512, torch.float16, device)
    layout = (None, None, None, False)
    plans = candidates(cell, "forward", 2, "ieee", 16, 512, device_of(torch.device("cuda", 0)))
    plan = next(p for p in plans if p.schedule == schedule)

    def call():
        return launch.forward(cell, *inputs, *layout, False, plan=plan)

    # Also compiles the kernels that are captured.
    expected = call()[0]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        results = call()
    results[0].zero_()
    graph.replay()
    assert torch.equal(results[0], expected)


def test_nothing_is_measured_in_a_capture(device, monkeypatch, tmp_path):
    inputs = inputs_of("lstm", 12, 16, 256, torch.float16, device)
    layout = (None, None, None, False)
    expected = op_of("lstm")(*inputs, *layout, False)[0]
    monkeypatch.setenv("SEQKERNELS_TRITON_TUNE", "1")
    monkeypatch.setenv("SEQKERNELS_CACHE_DIR", str(tmp_path))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        results = op_of("lstm")(*inputs, *layout, False)
    graph.replay()
    assert torch.equal(results[0], expected) and not list(tmp_path.iterdir())


def test_measured_plans_are_kept(device, monkeypatch, tmp_path):
    from seqkernels.triton import tune

    monkeypatch.setenv("SEQKERNELS_TRITON_TUNE", "1")
    monkeypatch.setenv("SEQKERNELS_CACHE_DIR", str(tmp_path))
    inputs = inputs_of("lstm", 12, 16, 256, torch.float16, device)
    first = op_of("lstm")(*inputs, None, None, None, False, False)[0]
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(tune, "_found", {})
    monkeypatch.setattr(tune, "_do_bench", None)  # not needed again
    again = op_of("lstm")(*inputs, None, None, None, False, False)[0]
    assert torch.equal(first, again)


@pytest.mark.parametrize("cell", [name for name, spec in CELLS.items() if spec.pointwise])
def test_the_named_backend_runs_a_layer_and_a_cell(device, set_precision, cell):
    set_precision("ieee")
    spec = CELLS[cell]
    x = torch.randn(11, 4, 24, device=device)
    state = tuple(torch.randn(4, 40, device=device) for _ in range(spec.states))
    weights = [torch.randn(spec.gates * 40, n, device=device) / 6 for n in (24, 40)]
    weights += [torch.randn(spec.gates * 40, device=device) for _ in range(2)]
    for function, value in ((functional.sequence, x), (functional.cell, x[0])):
        ours, theirs = (
            function(cell, value, state, *weights, backend=name)[0]
            for name in ("triton", "reference")
        )
        wide = [[t.double() for t in tensors] for tensors in (state, weights)]
        wide = function(cell, value.double(), tuple(wide[0]), *wide[1], backend="reference")[0]
        assert_parity(ours, theirs, wide, f"{cell} {function.__name__}")
