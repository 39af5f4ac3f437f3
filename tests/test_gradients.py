"""Gradients over time: the measure against autograd, and what the study must show."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import seqkernels
from seqkernels.gradients import main, state_gradients, study, table


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("library", [seqkernels, torch.nn], ids=["seqkernels", "torch"])
def test_the_norms_are_those_of_finite_differences(library, kind):
    layer = getattr(library, kind)(3, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def loss(output):
        return output.square().sum()

    norms = state_gradients(layer, x, loss)
    assert norms.shape == (1, 5)
    # After step t the rest of the loss is a function of the state alone.
    t, epsilon = 2, 1e-6
    with torch.no_grad():
        _, state = layer(x[: t + 1])
        h, *c = state if isinstance(state, tuple) else (state,)

        def rest(h):
            output, _ = layer(x[t + 1 :], (h, *c) if c else h)
            return loss(h) + loss(output)

        gradient = torch.zeros_like(h)
        for i in range(h.numel()):
            shift = torch.zeros(h.numel(), dtype=h.dtype)
            shift[i] = epsilon
            shift = shift.view_as(h)
            gradient.view(-1)[i] = (rest(h + shift) - rest(h - shift)) / (2 * epsilon)
    assert norms[0, t].item() == pytest.approx(gradient.norm().item(), rel=1e-6)


def test_layers_and_batch_first():
    layer = seqkernels.LSTM(3, 4, 2, batch_first=True)
    x = torch.randn(2, 6, 3)
    norms = state_gradients(layer, x, lambda output: output[:, -1].sum())
    assert norms.shape == (2, 6)
    assert (norms[:, :-1] > 0).all()
    # The last state of a lower layer is read by nothing.
    assert norms[0, -1] == 0 < norms[1, -1]
    other = seqkernels.LSTM(3, 4, 2)
    other.load_state_dict(layer.state_dict())
    same = state_gradients(other, x.transpose(0, 1), lambda output: output[-1].sum())
    torch.testing.assert_close(norms, same)


def test_parameter_gradients_are_those_of_one_call():
    layer = seqkernels.GRU(3, 4).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    state_gradients(layer, x, lambda output: output.sum())
    stepped = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x)[0].sum().backward()
    for ours, expected in zip(stepped, layer.parameters(), strict=True):
        torch.testing.assert_close(ours, expected.grad, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_followed_is_refused():
    x = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match="bidirectional"):
        state_gradients(seqkernels.GRU(3, 4, bidirectional=True), x, torch.sum)
    with pytest.raises(ValueError, match="scalar"):
        state_gradients(seqkernels.GRU(3, 4), x, lambda output: output)


def test_gradients_vanish_explode_and_are_clipped():
    found = {f.name: f for f in study(steps=40, hidden=32, rows=16, updates=1, clip=0.1)}
    for name in ("RNN", "LSTM", "GRU"):
        assert found[name].reach < 1e-6
    exploding = found["RNN, recurrent weights x 4"]
    assert exploding.reach > 10
    assert exploding.gradient_norm > 10
    for name in ("LSTM, chrono biases", "GRU, chrono biases"):
        assert found[name].reach > 1e-4
    for finding in found.values():
        assert finding.clipped_norm <= 0.1 * (1 + 1e-4)
    assert "chrono" in table(found.values())


def test_a_gated_cell_learns_what_a_plain_one_cannot():
    found = {f.name: f for f in study(steps=25, hidden=32, rows=32, updates=150)}
    assert found["RNN"].accuracy < 0.4
    assert found["GRU, chrono biases"].accuracy > 0.9


def test_the_command_writes_a_table_and_a_plot(tmp_path, capsys):
    plot, result = tmp_path / "plot.svg", tmp_path / "result.json"
    arguments = ["--steps", "8", "--hidden", "8", "--updates", "2"]
    assert main([*arguments, "--plot", str(plot), "--json", str(result)]) == 0
    assert "symbols" in capsys.readouterr().out
    assert len(json.loads(result.read_text())) == 6
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert main([*arguments, "--plot", "/no/such/folder/x.svg"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--steps", value] for value in ("2", "-1", "2.5", str(2**40))),
        *(["--hidden", value] for value in ("0", str(2**40))),
        *(["--seed", value] for value in ("-1", str(2**70))),
        *(["--clip", value] for value in ("0", "nan")),
        ["--updates", "-1"],
        ["--json", "x", "--plot", "x"],
    ],
    ids=" ".join,
)
def test_arguments_that_cannot_be_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
