"""`reset=`: an episode is computed as if it stood alone, in both directions."""

import pytest
import torch
from pairs import state
from tolerance import assert_parity

import seqkernels

STEPS, ROWS, INPUT, HIDDEN = 7, 3, 4, 6
MODULES = {
    "LSTM": lambda **o: seqkernels.LSTM(INPUT, HIDDEN, **o),
    "LSTM projected": lambda **o: seqkernels.LSTM(INPUT, HIDDEN, proj_size=5, **o),
    "GRU": lambda **o: seqkernels.GRU(INPUT, HIDDEN, **o),
    "GRU reset before": lambda **o: seqkernels.GRU(INPUT, HIDDEN, reset="before", **o),
    "RNN": lambda **o: seqkernels.RNN(INPUT, HIDDEN, **o),
}
# Episodes begin at these steps of each row; one at step 0 begins anew, not from the initial state.
BEGINS = ((0, 3, 4), (2, 6), ())


@pytest.fixture(params=["native", "reference"])
def backend(request):
    with seqkernels.use_backend(request.param):
        yield


def _resets():
    reset = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    for row, steps in enumerate(BEGINS):
        reset[list(steps), row] = True
    return reset


def _initial(layer, directions):
    kind = "LSTM" if isinstance(layer, seqkernels.LSTM) else "GRU"
    found = state(kind, (ROWS,), HIDDEN, directions=directions)
    if not isinstance(found, tuple):
        return (found,)
    h, c = found
    return (h[..., : layer.proj_size] if layer.proj_size else h), c


def _episodes(layer, x, hx, lengths):
    """What the layer gives for every episode by itself: output and final state."""
    directions = 2 if layer.bidirectional else 1
    output = x.new_zeros(STEPS, ROWS, directions * (layer.proj_size or HIDDEN))
    final = [torch.zeros_like(s) for s in hx]
    for row, begins in enumerate(BEGINS):
        length = lengths[row]
        edges = sorted({0, *(b for b in begins if b < length), length})
        for begin, end in zip(edges, edges[1:], strict=False):
            own = [torch.zeros_like(s[:, row : row + 1]) for s in hx]
            for mine, given in zip(own, hx, strict=True):
                if begin == 0 and 0 not in begins:
                    mine[0] = given[0, row]
                if directions == 2 and end == length:
                    mine[1] = given[1, row]
            one = tuple(own) if len(own) == 2 else own[0]
            out, ends = layer(x[begin:end, row : row + 1], one)
            output[begin:end, row] = out[:, 0]
            for all_, mine in zip(final, ends if len(own) == 2 else (ends,), strict=True):
                if end == length:
                    all_[0, row] = mine[0, 0]
                if directions == 2 and begin == 0:
                    all_[1, row] = mine[1, 0]
    return output, final


@pytest.mark.parametrize("lengths", [None, (5, 7, 2)], ids=["whole", "lengths"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", MODULES)
def test_every_episode_is_its_own_run(kind, directions, lengths, backend):
    torch.manual_seed(0)
    layer = MODULES[kind](bidirectional=directions == 2, dtype=torch.float64)
    x = torch.randn(STEPS, ROWS, INPUT, dtype=torch.float64, requires_grad=True)
    hx = [s.double().requires_grad_() for s in _initial(layer, directions)]
    keywords = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    given = tuple(hx) if len(hx) == 2 else hx[0]
    output, final = layer(x, given, reset=_resets(), **keywords)
    final = final if len(hx) == 2 else (final,)
    wanted = _episodes(layer, x, hx, lengths or [STEPS] * ROWS)
    found = [output, *final]
    expected = [wanted[0], *wanted[1]]
    for name, one, other in zip(("output", "h_n", "c_n"), found, expected, strict=False):
        assert_parity(one.detach(), None, other.detach(), name)
    leaves = [x, *hx, *layer.parameters()]
    grads = [
        torch.autograd.grad(sum((r * (i + 1)).square().sum() for i, r in enumerate(rs)), leaves)
        for rs in (found, expected)
    ]
    for index, (one, other) in enumerate(zip(*grads, strict=True)):
        assert_parity(one, None, other, f"gradient {index}")


def test_inference_equals_training():
    layer = seqkernels.LSTM(INPUT, HIDDEN, 2, bidirectional=True)
    x = torch.randn(STEPS, ROWS, INPUT)
    lengths = torch.tensor((5, 7, 2))
    trained = layer(x, reset=_resets(), lengths=lengths)[0]
    with torch.no_grad():
        assert torch.equal(layer(x, reset=_resets(), lengths=lengths)[0], trained)


def test_marks_past_the_end_mark_nothing():
    layer = seqkernels.GRU(INPUT, HIDDEN, bidirectional=True)
    x, lengths = torch.randn(STEPS, ROWS, INPUT), torch.tensor((5, 7, 2))
    past = torch.arange(STEPS).unsqueeze(-1) >= lengths
    for one, other in zip(
        layer(x, lengths=lengths), layer(x, lengths=lengths, reset=past), strict=True
    ):
        assert torch.equal(one, other)
