"""Rows of different lengths: PackedSequence as in torch.nn, `lengths=` and `reset=`."""

import pytest
import torch
from pairs import DTYPES, assert_same, run, state, trio
from tolerance import assert_parity
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import seqkernels

pytestmark = pytest.mark.usefixtures("backend")

KINDS = ("LSTM", "GRU", "RNN")
SORTED, UNSORTED = (6, 4, 4, 1), (3, 6, 1, 4)
OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 2, "bidirectional": True},
    "stacked, no bias": {"num_layers": 3, "bias": False},
}


def _rows(lengths, size=5):
    return [torch.randn(n, size, dtype=torch.float64) for n in lengths]


def _state(kind, batch, options, hidden_size=7):
    layers = options.get("num_layers", 1)
    directions = 2 if options.get("bidirectional") else 1
    return state(kind, (batch,), hidden_size, layers=layers, directions=directions)


def _padded(tensors, fill=0.0):
    """[T, N, .] with `fill` past the end of each row."""
    steps = max(len(t) for t in tensors)
    padded = torch.full((steps, len(tensors), tensors[0].shape[-1]), fill, dtype=tensors[0].dtype)
    for n, tensor in enumerate(tensors):
        padded[: len(tensor), n] = tensor
    return padded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("lengths", [SORTED, UNSORTED], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed(kind, lengths, options, dtype):
    modules = trio(kind, 5, 7, dtype=dtype, **options)
    packed = pack_sequence(_rows(lengths), enforce_sorted=lengths == SORTED)
    assert_same(modules, packed, None)
    assert_same(modules, packed, _state(kind, len(lengths), options))


@pytest.mark.parametrize("proj_size", [0, 3])
def test_packed_results_keep_their_order(proj_size):
    ours, theirs, _ = trio("LSTM", 5, 7, proj_size=proj_size, bidirectional=True)
    packed = pack_sequence(_rows(UNSORTED), enforce_sorted=False)
    hx = state("LSTM", (4,), 7, directions=2, proj_size=proj_size)
    output, (h_n, c_n), c_sequence = ours(packed, hx, return_c_sequence=True)
    expected, (expected_h, expected_c) = theirs(packed, hx)
    for result in (output, c_sequence):
        assert isinstance(result, PackedSequence)
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert torch.equal(getattr(result, field), getattr(expected, field))
    padded, lengths = pad_packed_sequence(output)
    assert lengths.tolist() == list(UNSORTED)
    assert_parity(padded, None, pad_packed_sequence(expected)[0], "output")
    assert_parity(h_n, None, expected_h, "h_n")
    assert_parity(c_n, None, expected_c, "c_n")
    c_padded = pad_packed_sequence(c_sequence)[0]
    for row, n in enumerate(UNSORTED):
        assert_parity(c_padded[n - 1, row, :7], None, c_n[0, row], f"c at the end of row {row}")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_of_equal_length(kind):
    modules = trio(kind, 5, 7, bidirectional=True)
    assert_same(modules, pack_sequence(_rows((4, 4, 4))), None)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_single_step(kind):
    modules = trio(kind, 5, 7, bidirectional=True)
    assert_same(modules, pack_sequence(_rows((1, 1))), state(kind, (2,), 7, directions=2))


def _with_lengths(kind, lengths, batch_first, options, dtype):
    """Ours with `lengths=` against torch in two precisions with a packed sequence."""
    ours, theirs, exact = trio(kind, 5, 7, dtype=dtype, batch_first=batch_first, **options)
    padded = _padded(_rows(lengths), fill=9.0)
    hx = _state(kind, len(lengths), options)
    x = padded.transpose(0, 1) if batch_first else padded

    def packing(module):
        class Packed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = module

            def named_parameters(self):
                return self.layer.named_parameters()

            def forward(self, x, hx):
                packed = pack_padded_sequence(
                    x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False
                )
                output, state = self.layer(packed, hx)
                return pad_packed_sequence(output, batch_first=batch_first)[0], state

        return Packed()

    x, rounded = x.to(dtype), tuple(t.to(dtype) for t in hx) if kind == "LSTM" else hx.to(dtype)
    found = run(ours, dtype, (x, rounded), lengths=torch.tensor(lengths))
    reference = run(packing(exact), torch.float64, (x, rounded))
    same_dtype = run(packing(theirs), dtype, (x, rounded))
    for name, value in found.items():
        assert_parity(value, same_dtype[name], reference[name], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, options, dtype):
    _with_lengths(kind, UNSORTED, False, options, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_batch_first(kind):
    _with_lengths(kind, UNSORTED, True, OPTIONS["stacked"], torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind):
    """NaN past the end of a row reaches neither a result nor a gradient."""
    ours = trio(kind, 5, 7, num_layers=2, bidirectional=True).ours
    rows = _rows(UNSORTED)
    lengths = torch.tensor(UNSORTED)
    results = []
    for fill in (0.0, torch.nan):
        x = _padded(rows, fill).requires_grad_()
        output, _ = ours(x, lengths=lengths)
        grads = torch.autograd.grad(output.square().sum(), [x, *ours.parameters()])
        results.append([output, *grads])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("kind", KINDS)
def test_row_without_steps_keeps_its_state(kind):
    ours = trio(kind, 5, 7, bidirectional=True).ours
    hx = state(kind, (3,), 7, directions=2)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    output, final = ours(x, hx, lengths=torch.tensor([4, 0, 2]))
    assert not output[:, 1].any()
    pairs = zip(final, hx, strict=True) if kind == "LSTM" else [(final, hx)]
    for end, start in pairs:
        assert torch.equal(end[:, 1], start[:, 1])


def test_projected_row_without_steps_keeps_its_state():
    ours = seqkernels.LSTM(5, 7, proj_size=3, dtype=torch.float64, bidirectional=True)
    h_0, c_0 = state("LSTM", (2,), 7, directions=2, proj_size=3)
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    _, (h_n, c_n) = ours(x, (h_0, c_0), lengths=torch.tensor([0, 4]))
    assert torch.equal(h_n[:, 0], h_0[:, 0]) and torch.equal(c_n[:, 0], c_0[:, 0])


@pytest.mark.parametrize("proj_size", [0, 3])
def test_int32_lengths(proj_size):
    ours = seqkernels.LSTM(5, 7, proj_size=proj_size)
    x = torch.randn(4, 2, 5)
    hx = tuple(s.float() for s in state("LSTM", (2,), 7, proj_size=proj_size))
    expected, _ = ours(x, hx, lengths=torch.tensor([3, 4]))
    output, _ = ours(x, hx, lengths=torch.tensor([3, 4], dtype=torch.int32))
    assert torch.equal(output, expected)


def _in_pieces(layer, x, hx, reset):
    """The output of a forward layer, row by row, the state zeroed at every reset: [T, N, H]."""
    rows = []
    for n in range(x.shape[1]):
        carried = tuple(s[:, n : n + 1] for s in hx) if isinstance(hx, tuple) else hx[:, n : n + 1]
        steps = []
        for t in range(x.shape[0]):
            if reset[t, n]:
                carried = None
            output, carried = layer(x[t : t + 1, n : n + 1], carried)
            steps.append(output)
        rows.append(torch.cat(steps))
    return torch.cat(rows, 1)


@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_reset(kind, proj_size):
    options = {"proj_size": proj_size} if proj_size else {}
    if options and kind != "LSTM":
        kind = "LSTM"
    ours, theirs, _ = trio(kind, 5, 7, **options)
    x = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    hx = state(kind, (3,), 7, proj_size=proj_size)
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[0, 0] = reset[2, 1] = reset[3, 1] = reset[5, 2] = True
    output, _ = ours(x, hx, reset=reset)
    expected = _in_pieces(theirs, x, hx, reset)
    assert_parity(output, None, expected, "output")
    weights = torch.randn_like(output)
    inputs = [x, *ours.parameters()], [x, *theirs.parameters()]
    grads = torch.autograd.grad((output * weights).sum(), inputs[0])
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs[1])
    for index, (grad, wanted) in enumerate(zip(grads, expected_grads, strict=True)):
        assert_parity(grad, None, wanted, f"gradient {index}")


@pytest.mark.parametrize("kind", KINDS)
def test_reset_layouts(kind):
    """[N, T] with batch_first and [T] unbatched mean the same as [T, N]."""
    ours = trio(kind, 5, 7, num_layers=2, bidirectional=True).ours
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    reset = torch.rand(6, 3) < 0.3
    expected, _ = ours(x, reset=reset)
    for n in range(3):
        output, _ = ours(x[:, n], reset=reset[:, n])
        assert_parity(output, None, expected[:, n], "unbatched")
    ours.batch_first = True
    output, _ = ours(x.transpose(0, 1), reset=reset.transpose(0, 1))
    assert_parity(output, None, expected.transpose(0, 1), "batch first")


@pytest.mark.parametrize("kind", KINDS)
def test_reset_and_lengths_in_reverse(kind):
    """The reverse direction leaves an episode at its first step: what comes next starts anew.

    Flipping each row by hand and running it forwards gives the same.
    """
    ours = trio(kind, 5, 7, bidirectional=True).ours
    forward = trio(kind, 5, 7).ours
    forward.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in ours.state_dict().items() if "_reverse" in k}
    )
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    reset = torch.rand(6, 4) < 0.3
    output, _ = ours(x, lengths=torch.tensor(UNSORTED), reset=reset)
    for n, length in enumerate(UNSORTED):
        row, row_reset = x[:length, n].flip(0), reset[:length, n].flip(0).roll(1)
        row_reset[:1] = False
        expected, _ = forward(row, reset=row_reset)
        assert_parity(output[:length, n, 7:], None, expected.flip(0), f"row {n}")
        assert not output[length:, n].any()
