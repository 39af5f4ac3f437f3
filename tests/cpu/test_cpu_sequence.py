"""Every sequence op of the CPU against the reference: results and every gradient."""

import pytest
import torch
from cpu_cases import (
    DTYPES,
    LAYOUTS,
    SIZES,
    Case,
    make_inputs,
    op,
    results_and_grads,
    run_native,
    run_reference,
)
from tolerance import assert_parity

from seqkernels import reference
from seqkernels.cells import CELLS


def to_double(inputs: dict) -> dict:
    return {
        k: x.double() if x is not None and x.is_floating_point() else x for k, x in inputs.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", LAYOUTS + SIZES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_results_and_gradients(name, case, dtype):
    inputs = make_inputs(name, case, dtype)
    ours = results_and_grads(run_native, name, inputs, case.reverse)
    theirs = results_and_grads(run_reference, name, inputs, case.reverse)
    exact = results_and_grads(run_reference, name, to_double(inputs), case.reverse)
    for key, expected in exact.items():
        assert_parity(ours[key], theirs[key], expected, key)


@pytest.mark.parametrize("name", CELLS)
def test_long_float32_sequences(name):
    case = Case(400, 3, 40)
    inputs = make_inputs(name, case, torch.float32)
    ours = results_and_grads(run_native, name, inputs, case.reverse)
    theirs = results_and_grads(run_reference, name, inputs, case.reverse)
    exact = results_and_grads(run_reference, name, to_double(inputs), case.reverse)
    for key, expected in exact.items():
        assert_parity(ours[key], theirs[key], expected, key)


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_without_save_the_results_are_the_same(name, case):
    inputs = make_inputs(name, case, torch.float32)
    with_save = op(f"{name}_sequence")(*inputs.values(), case.reverse, True)
    without = op(f"{name}_sequence")(*inputs.values(), case.reverse, False)
    for a, b in zip(with_save[:3], without[:3], strict=True):
        assert torch.equal(a, b)
    assert without[3].numel() == without[4].numel() == 0


def test_saved_values_of_lstm():
    inputs = make_inputs("lstm", Case(1, 3, 5), torch.float64)
    _, _, c_n, c_sequence, saved = op("lstm_sequence")(*inputs.values(), False, True)
    gates = inputs["gates_x"][0] + torch.nn.functional.linear(
        inputs["h_0"], inputs["weight_hh"], inputs["bias_hh"]
    )
    i, f, g, o = gates.chunk(4, -1)
    expected = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1)
    torch.testing.assert_close(saved[0], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(c_sequence[0], c_n)


@pytest.mark.parametrize("name", ["gru", "gru_reset_before"])
def test_saved_values_of_gru(name):
    inputs = make_inputs(name, Case(1, 3, 5), torch.float64)
    saved = op(f"{name}_sequence")(*inputs.values(), False, True)[4]
    h, weight, bias = inputs["h_0"], inputs["weight_hh"], inputs["bias_hh"]
    x_r, x_z, x_n = inputs["gates_x"][0].chunk(3, -1)
    h_r, h_z, h_n = torch.nn.functional.linear(h, weight, bias).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    expected = [r, z, (x_n + r * h_n).tanh(), h_n]
    if name == "gru_reset_before":
        product = torch.nn.functional.linear(r * h, weight[10:], bias[10:])
        expected = [r, z, (x_n + product).tanh()]
    torch.testing.assert_close(saved[0], torch.cat(expected, -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_strided_arguments(name):
    case = Case(6, 4, 9)
    inputs = make_inputs(name, case, torch.float32)
    expected = op(f"{name}_sequence")(*inputs.values(), False, True)
    strided = {
        k: x.t().contiguous().t() if x is not None and x.dim() == 2 else x
        for k, x in inputs.items()
    }
    strided["gates_x"] = inputs["gates_x"].transpose(0, 1).contiguous().transpose(0, 1)
    found = op(f"{name}_sequence")(*strided.values(), False, True)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CELLS)
def test_nan_and_infinity_pass_as_in_the_reference(name):
    inputs = make_inputs(name, Case(3, 3, 17), torch.float32)
    inputs["gates_x"][0, 0] = float("nan")
    inputs["gates_x"][0, 1] = float("inf")
    inputs["gates_x"][0, 2] = -float("inf")
    found = run_native(name, inputs, False)["output"]
    expected = run_reference(name, inputs, False)["output"]
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_saturated_gates_match():
    x = torch.linspace(-200, 200, 4001).view(1, -1, 1)
    zero = torch.zeros(4001, 1)
    weight = torch.zeros(1, 1)
    found = op("rnn_tanh_sequence")(x, weight, None, zero, None, None, None, None, False, False)[0]
    (expected,) = reference.rnn_tanh_step(x[0].double(), zero.double(), (zero,))
    assert (found[0].double() - expected).abs().max() < 1.5e-7


@pytest.mark.parametrize("name", CELLS)
def test_a_second_backward_gives_the_same(name):
    inputs = make_inputs(name, Case(5, 4, 33), torch.float32)
    h_0 = inputs["h_0"].requires_grad_()
    output = run_native(name, inputs, False)["output"]
    first = torch.autograd.grad(output.sum(), h_0, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(output.sum(), h_0)[0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", [Case(3, 0, 8), Case(0, 2, 8)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_empty_batches_and_sequences(name, case, reverse):
    inputs = make_inputs(name, case, torch.float32)
    results = op(f"{name}_sequence")(*inputs.values(), reverse, True)
    output, h_n = results[:2]
    assert output.shape == (case.steps, case.batch, case.hidden)
    assert torch.equal(h_n, inputs["h_0"])
    state = [inputs[k] for k in ("weight_hh", "bias_hh", "h_0", "c_0")]
    grads = (None, h_n, None, None, *state, output, *results[3:], None, None, None, reverse)
    grad_gates_x, _, grad_h_0, _ = op(f"{name}_sequence_backward")(*grads)
    assert grad_gates_x.shape == inputs["gates_x"].shape
    assert torch.equal(grad_h_0, h_n)
