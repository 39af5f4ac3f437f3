"""Every op: gradcheck, gradgradcheck and opcheck in float64, and agreement with the reference."""

import pytest
import torch
from samples import SAMPLES, Sample, tensors
from torch.autograd import gradcheck, gradgradcheck

from seqkernels.cells import CELLS
from seqkernels.ops import get
from seqkernels.ops.sequence import reference_sequence

POINTWISE = [name for name, spec in CELLS.items() if spec.pointwise]


def every_case():
    return pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def every_cell():
    return pytest.mark.parametrize("cell", CELLS)


def run_sequence(cell, layout):
    """The op as a function of its differentiable inputs, absent results left out."""

    def function(*values):
        if CELLS[cell].states == 1:
            values = (*values, None)
        output, h_n, c_n, c_sequence, _ = get(f"{cell}_sequence")(*values, *layout, True)
        return (output, h_n, c_n, c_sequence) if CELLS[cell].states > 1 else (output, h_n)

    return function


def away_from_kinks(cell, values):
    """relu has no derivative at 0: shift the gates so that finite differences do not cross it."""
    if cell == "rnn_relu":
        with torch.no_grad():
            values[0].abs_().add_(0.5)
            for value in values[1:]:
                value.abs_()
    return values


@every_cell()
@every_case()
def test_sequence_matches_reference(cell, sample):
    values, layout = tensors(cell, sample)
    output, h_n, c_n, c_sequence, _ = get(f"{cell}_sequence")(*values, *layout, True)
    state = [s for s in values[3:] if s is not None]
    expected, final, c_expected = reference_sequence(CELLS[cell], *values[:3], state, *layout)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h_n, final[0], rtol=1e-12, atol=1e-12)
    if CELLS[cell].states > 1:
        torch.testing.assert_close(c_n, final[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c_sequence, c_expected, rtol=1e-12, atol=1e-12)


@every_cell()
@every_case()
def test_sequence_gradcheck(cell, sample):
    values, layout = tensors(cell, sample, requires_grad=True)
    values = away_from_kinks(cell, [v for v in values if v is not None])
    assert gradcheck(run_sequence(cell, layout), values)


@every_cell()
@pytest.mark.parametrize("name", ["plain", "packed-reverse", "reset-lengths-reverse"])
def test_sequence_gradgradcheck(cell, name):
    values, layout = tensors(cell, SAMPLES[name], requires_grad=True)
    values = away_from_kinks(cell, [v for v in values if v is not None])
    assert gradgradcheck(run_sequence(cell, layout), values)


@every_cell()
@pytest.mark.parametrize("name", ["plain", "lengths-reverse", "packed", "reset"])
def test_sequence_opcheck(cell, name):
    values, layout = tensors(cell, SAMPLES[name], torch.float32, requires_grad=True)
    torch.library.opcheck(get(f"{cell}_sequence"), (*values, *layout, True))


@every_cell()
def test_sequence_opcheck_without_saving(cell):
    values, layout = tensors(cell, SAMPLES["plain"], torch.float32)
    torch.library.opcheck(get(f"{cell}_sequence"), (*values, *layout, False))


@every_cell()
def test_sequence_backward_opcheck(cell):
    values, layout = tensors(cell, SAMPLES["plain"], torch.float32)
    output, h_n, c_n, c_sequence, saved = get(f"{cell}_sequence")(*values, *layout, True)
    two = CELLS[cell].states > 1
    grads = [torch.randn_like(output), torch.randn_like(h_n)]
    grads += [torch.randn_like(c_n), torch.randn_like(c_sequence)] if two else [None, None]
    arguments = (*grads, *values[1:], output, c_sequence, saved, *layout)
    torch.library.opcheck(get(f"{cell}_sequence_backward"), arguments)


def layer_inputs(cell, sample, dtype, requires_grad):
    values, layout = tensors(cell, sample, dtype, requires_grad)
    gates_x, weight_hh, bias_hh, h_0, c_0 = values
    input_size = 2

    def random(*shape):
        return torch.randn(shape, dtype=dtype, requires_grad=requires_grad)

    x = random(*gates_x.shape[:-1], input_size)
    weight_ih, bias_ih = random(gates_x.shape[-1], input_size), random(gates_x.shape[-1])
    return [x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0], layout


@every_cell()
@pytest.mark.parametrize("name", ["plain", "lengths-reverse", "packed", "reset-lengths-reverse"])
def test_layer_gradcheck(cell, name):
    values, layout = layer_inputs(cell, SAMPLES[name], torch.float64, True)
    values = away_from_kinks(cell, [v for v in values if v is not None])

    def function(*values):
        if CELLS[cell].states == 1:
            values = (*values, None)
        output, h_n, c_n, c_sequence, _ = get(f"{cell}_layer")(*values, *layout, True, "")
        return (output, h_n, c_n, c_sequence) if CELLS[cell].states > 1 else (output, h_n)

    assert gradcheck(function, values)
    if name in ("plain", "packed"):
        assert gradgradcheck(function, values)


@every_cell()
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_layer_opcheck(cell, name):
    values, layout = layer_inputs(cell, SAMPLES[name], torch.float32, True)
    torch.library.opcheck(get(f"{cell}_layer"), (*values, *layout, True, ""))


@every_cell()
def test_second_backward_gives_the_same_gradients(cell):
    values, layout = layer_inputs(cell, SAMPLES["plain"], torch.float32, True)
    present = [v for v in values if v is not None]
    output = get(f"{cell}_layer")(*values, *layout, True, "")[0]
    first = torch.autograd.grad(output.sum(), present, retain_graph=True)
    second = torch.autograd.grad(output.sum(), present)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def cell_inputs(cell, dtype, requires_grad):
    values, _ = tensors(cell, Sample(batch=3, hidden_size=4), dtype, requires_grad)
    gates_x, _, _, h_0, c_0 = values
    gates = gates_x[0].detach().clone().requires_grad_(requires_grad)
    hidden = torch.randn_like(gates, requires_grad=requires_grad)
    return [gates, hidden, h_0, c_0]


@pytest.mark.parametrize("cell", POINTWISE)
def test_cell_gradcheck(cell):
    values = [v for v in cell_inputs(cell, torch.float64, True) if v is not None]
    values = away_from_kinks(cell, values)

    def function(*values):
        if CELLS[cell].states == 1:
            return get(f"{cell}_cell")(*values, None, True)[0]
        return get(f"{cell}_cell")(*values, True)[:2]

    # The previous h of a pointwise step matters to the GRU alone.
    with_grad = values if cell in ("gru", "lstm") else values[:2]
    rest = values[len(with_grad) :]
    assert gradcheck(lambda *v: function(*v, *rest), with_grad)
    assert gradgradcheck(lambda *v: function(*v, *rest), with_grad)


@pytest.mark.parametrize("cell", POINTWISE)
def test_cell_opcheck(cell):
    values = cell_inputs(cell, torch.float32, True)
    torch.library.opcheck(get(f"{cell}_cell"), (*values, True))
    with torch.no_grad():
        new_h, new_c, saved = get(f"{cell}_cell")(*values, True)
    detached = [None if v is None else v.detach() for v in values]
    grad_c = torch.randn_like(new_c) if CELLS[cell].states > 1 else None
    arguments = (torch.randn_like(new_h), grad_c, *detached[2:], new_h, new_c, saved)
    torch.library.opcheck(get(f"{cell}_cell_backward"), arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_without_saving(cell):
    """A program captured for inference does not save: its backward runs the forward again."""
    values, layout = tensors(cell, SAMPLES["plain"], requires_grad=True)
    wanted = [v for v in values if v is not None]
    found = []
    for save in (True, False):
        output, h_n, *_ = get(f"{cell}_sequence")(*values, *layout, save)
        found.append(torch.autograd.grad(output.square().sum() + h_n.sum(), wanted))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_backward_op_has_no_derivative_of_its_own():
    values, layout = tensors("gru", SAMPLES["plain"])
    output, _, _, c_sequence, saved = get("gru_sequence")(*values, *layout, True)
    grad = torch.randn_like(output, requires_grad=True)
    _, weight_hh, _, h_0, _ = values
    result = get("gru_sequence_backward")(
        grad, None, None, None, weight_hh, None, h_0, None, output, c_sequence, saved, *layout
    )
    with pytest.raises(RuntimeError, match="create_graph=True"):
        result[0].sum().backward()
