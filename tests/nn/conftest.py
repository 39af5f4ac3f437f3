"""Settings of the layer tests."""

import pytest
import torch

import seqkernels


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """These sizes are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[None, "reference"], ids=["default", "reference"])
def backend(request):
    """Run the test with the backend that the dispatcher takes, and with the reference."""
    with seqkernels.use_backend(request.param):
        yield request.param
