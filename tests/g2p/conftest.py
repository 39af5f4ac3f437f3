"""The dictionary, read once for all tests: it takes longer than most of them."""

from itertools import islice

import pytest
import torch

from seqkernels.g2p import read_dictionary
from seqkernels.g2p import run as run_module


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whole():
    return read_dictionary()


@pytest.fixture(scope="session")
def dictionary(whole):
    return {word: whole[word] for word in islice(whole, 0, None, 900)}


@pytest.fixture
def read_once(whole, monkeypatch):
    """Runs take the dictionary that is there."""
    monkeypatch.setattr(run_module, "read_dictionary", lambda: whole)
