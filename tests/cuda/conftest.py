"""Plans of the persistent kernels, cut up in other ways than the device's own."""

import pytest

from seqkernels import _extension

LIMITS = {
    "as planned": {},
    "through L2": {"max_cluster": 1},
    "in small blocks": {"max_units": 16},
}


@pytest.fixture(params=LIMITS.values(), ids=LIMITS)
def plans(request):
    """Every group as planned; exchanging through L2; and small layers cut up, in clusters."""
    _extension.C.limit_plans(**request.param)
    yield request.param
    _extension.C.limit_plans()
