"""Shared set-up: every test starts from one seed, and uninitialised memory is poisoned with NaN."""

import pytest
import torch

from tests.devices import device  # noqa: F401, pytest finds it here
from tests.gpu import emulated, gpu  # noqa: F401


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every torch.empty, in C++ too, with NaN or the largest integer: an element that a kernel forgets shows."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was)


@pytest.fixture
def threads():
    """Give a function that sets torch's thread count; it is put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
