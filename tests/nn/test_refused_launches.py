"""Layers whose launch the driver refuses: the next backend takes the call, and it is remembered."""

import pytest
import torch
from emulated_backend import persistent_on_the_cpu
from emulated_ops import ops, refuse

import seqkernels

pytestmark = pytest.mark.needs("headers")

LAUNCH_FAILS = 701  # cudaErrorLaunchOutOfResources
WORDS = f"the driver refuses its launch: CUDA error {LAUNCH_FAILS}"
LAYERS = {
    "one": {},
    "both directions": {"bidirectional": True},
    "stacked": {"num_layers": 2},
}


@pytest.fixture(autouse=True, name="called")
def emulated():
    with persistent_on_the_cpu() as called:
        yield called
    refuse()
    ops()


def outcome(layer, x):
    """Results, and gradients of the input and all parameters."""
    x = x.clone().requires_grad_()
    output, states = layer(x)
    grads = torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))
    return [output.detach(), *(s.detach() for s in states), *grads]


@pytest.mark.parametrize("trials_pass", [False, True], ids=["in a trial", "at the launch"])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_the_next_backend_takes_the_call(options, trials_pass, called):
    layer, x = seqkernels.LSTM(5, 24, **options), torch.randn(4, 3, 5)
    expected = outcome(layer, x)
    assert called
    ops(max_cluster=4, max_units=16)  # as new
    refuse(LAUNCH_FAILS, trials_pass=trials_pass)
    found = outcome(layer, x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    called.clear()
    refuse()
    outcome(layer, x)
    assert not called, "a refusal is for good"
    text = seqkernels.explain(layer, x)
    assert WORDS in text and "native" in text


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_backend_that_was_named_raises(options):
    layer, x = seqkernels.LSTM(5, 24, **options), torch.randn(4, 3, 5)
    refuse(LAUNCH_FAILS, trials_pass=True)
    with seqkernels.use_backend("persistent"):
        with torch.no_grad(), pytest.raises(RuntimeError, match=WORDS):
            layer(x)
        # From now on the plan itself says so.
        with pytest.raises(RuntimeError, match=f"cannot run this call: .*{WORDS}"):
            layer(x)


def test_a_compiled_layer_is_planned_around_a_refusal(called):
    layer, x = seqkernels.GRU(5, 24), torch.randn(4, 3, 5)
    expected = layer(x)[0].detach()
    ops(max_cluster=4, max_units=16)
    refuse(LAUNCH_FAILS)
    called.clear()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0].detach(), expected, rtol=1e-5, atol=1e-5)
    assert not called


def test_one_refused_pass_is_enough(called):
    """Training takes another backend where the backward alone is refused, before anything runs."""
    layer, x = seqkernels.LSTM(5, 24), torch.randn(4, 3, 5)
    with torch.no_grad():
        layer(x)  # the plan of the forward is known
    assert called
    called.clear()
    refuse(LAUNCH_FAILS)
    outcome(layer, x)
    assert not called
    assert f"in the backward, {WORDS}" in seqkernels.explain(layer, x)
    with torch.no_grad():
        layer(x)
    assert called
