"""Between a plan and its launch: device facts asked once, launches that the driver refuses."""

import pytest
import torch
from emulated_ops import library, ops, refuse
from joined import check_layers
from parity import Case, check_sequence, inputs_of
from recording import recorded

from seqkernels import _extension

pytestmark = pytest.mark.needs("headers")

LAUNCH_FAILS, TOO_LARGE, CLUSTER_SIZE = 701, 720, 912  # of cudaError_t
DEVICE = {"max_cluster": 4, "max_units": 16}
CASE = Case(3, 3, 40)
WORDS = "the driver refuses its launch: CUDA error"


@pytest.fixture(autouse=True)
def all_launches_pass():
    yield
    refuse()
    ops()


def two_layers():
    """The forward and the backward op of stacked layers, whose plan is a cluster of each."""
    for backward in (False, True):
        sizes = (CASE.batch, CASE.hidden_size)
        plan = _extension.C.plan("lstm", "bfloat16", backward, *sizes, layers=2, **DEVICE)
        assert plan["exchange"] == "cluster"
    found = ops(**DEVICE)
    return found.lstm_layers_persistent.default, found.lstm_layers_persistent_backward.default


def run_layers(ops):
    run, back = ops
    check_layers("lstm", CASE, torch.bfloat16, run, count=2, run_back=back)


def cooperative(launches):
    """Whether each persistent launch had the cooperative attribute."""
    return [bool(x.numbers[8]) for x in launches if "persistent_kernel" in x.kernel]


@pytest.mark.needs("cuda_build")
def test_stacked_clusters_are_launched_cooperatively():
    functions = two_layers()
    with recorded(library()) as launches:
        run_layers(functions)
    assert cooperative(launches) == [True] * 3  # training, inference, backward


@pytest.mark.needs("cuda_build")
def test_residency_stands_in_for_the_cooperative_attribute():
    """Where a driver does not take both attributes, the occupancy of clusters decides."""
    functions = two_layers()
    refuse(CLUSTER_SIZE, clusters=True, cooperative=True)
    with recorded(library()) as launches:
        run_layers(functions)
    assert cooperative(launches) == [False] * 3


def test_what_may_not_be_resident_is_refused():
    functions = two_layers()
    refuse(CLUSTER_SIZE, clusters=True, cooperative=True, resident=1)
    with pytest.raises(RuntimeError, match=f"{WORDS} {CLUSTER_SIZE}"):
        run_layers(functions)


def sequence():
    found = ops(**DEVICE)
    return found.lstm_sequence_persistent.default, found.lstm_sequence_persistent_backward.default


def forward(run):
    values, layout = inputs_of("lstm", CASE, torch.bfloat16)
    return run(*values, *layout, True)


@pytest.mark.parametrize("trials_pass", [False, True], ids=["in a trial", "at the launch"])
def test_a_refused_launch_is_remembered(trials_pass):
    run, _ = sequence()
    refuse(LAUNCH_FAILS, trials_pass=trials_pass)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{WORDS} {LAUNCH_FAILS}"):
            forward(run)
        refuse()
    # Of other sizes nothing was said.
    check_sequence("lstm", Case(3, 2, 24), torch.bfloat16, *sequence())


def test_an_error_that_is_no_refusal_is_not_remembered():
    run, _ = sequence()
    refuse(2)  # cudaErrorMemoryAllocation
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        forward(run)
    refuse()
    forward(run)


def test_the_trial_of_a_launch_computes_nothing():
    run, _ = sequence()
    with recorded(library()) as launches:
        forward(run)
    assert len([x for x in launches if "persistent_kernel" in x.kernel]) == 1


def test_a_device_is_asked_once():
    run, _ = sequence()
    before = library().functions.emulated_device_queries()
    forward(run)
    forward(run)
    torch.ops.seqkernels_emulated.greedy_refusal(torch.empty(9, 4), 4, 2, 1, 1, 4, 9)
    assert library().functions.emulated_device_queries() == before + 1


def test_greedy_decoding_remembers_a_refused_launch():
    found = ops()
    # Sizes of no other test: what is refused stays so for the process.
    hidden, vocabulary = 9, 13
    embedding, projection = torch.randn(vocabulary, 5), torch.randn(vocabulary, hidden)
    weights = [[torch.randn(hidden, 5)], [torch.randn(hidden, hidden)], [], []]
    state, start = torch.zeros(1, 1, hidden), torch.zeros(1, dtype=torch.long)

    def decode():
        options = (projection, None, state, None, start, 2, -1, 0, False)
        return found.rnn_tanh_greedy(embedding, *weights, *options)

    def refusal():
        return found.greedy_refusal(embedding, 1, 1, 1, 1, hidden, vocabulary)

    assert refusal() == ""
    refuse(TOO_LARGE, cooperative=True)
    with pytest.raises(RuntimeError, match=f"{WORDS} {TOO_LARGE}"):
        decode()
    refuse()
    assert f"{WORDS} {TOO_LARGE}" in refusal()
    with pytest.raises(RuntimeError, match="cannot run this call"):
        decode()
