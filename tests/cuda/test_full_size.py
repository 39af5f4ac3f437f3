"""Parity of the CUDA sequence kernels on a GPU at the sizes of real models, up to T = 1000."""

import pytest
from cuda_cases import pair, refusal
from gpu import require_cuda
from parity import MATHS, Case, check_sequence, recurrent_math

pytestmark = pytest.mark.cuda

FULL = {
    "T1000-N16-H512": Case(1000, 16, 512),
    "T1000-N16-H768": Case(1000, 16, 768),
    "T500-N32-H1024": Case(500, 32, 1024),
    "T200-N128-H256": Case(200, 128, 256),
    "T400-N64-H384-lengths-reverse": Case(
        400, 64, 384, lengths=tuple(400 * (i * 37 % 64) // 63 for i in range(64)), reverse=True
    ),
    "T300-N1-H650": Case(300, 1, 650),
}
# The others share their code with these and are tested at small sizes.
LONG = {
    "gru_reset_before": Case(300, 16, 512),
    "rnn_tanh": Case(300, 16, 512),
    "rnn_relu": Case(300, 16, 512),
}


@pytest.fixture(autouse=True)
def device():
    return require_cuda("CUDA kernels")


def check(cell, case, math, device):
    with recurrent_math(math) as (dtype, tf32):
        reason = refusal(cell, case, dtype)
        if reason is None:
            check_sequence(cell, case, dtype, *pair(cell, "_persistent"), device=device, tf32=tf32)
        else:
            assert "fit" in reason or "resident" in reason or "hold" in reason, reason
        if case.hidden_size <= 512 and math in ("float16", "bfloat16"):
            assert reason is None


@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("case", FULL.values(), ids=FULL)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_persistent_at_full_size(cell, case, math, device):
    check(cell, case, math, device)


@pytest.mark.parametrize("plans", [{"max_cluster": 1}], ids=["through L2"], indirect=True)
@pytest.mark.parametrize("math", ["float16", "tf32"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_persistent_through_l2(cell, math, plans, device):
    """What a cluster would take at this size."""
    check(cell, FULL["T1000-N16-H512"], math, device)


@pytest.mark.parametrize("math", ["bfloat16", "tf32"])
@pytest.mark.parametrize("cell", LONG)
def test_persistent_in_long_runs(cell, math, device):
    check(cell, LONG[cell], math, device)


@pytest.mark.parametrize("math", ["float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_stepwise_in_long_runs(cell, math, device):
    with recurrent_math(math) as (dtype, _):
        check_sequence(cell, Case(300, 16, 512), dtype, *pair(cell, ""), device=device)
