"""Ops are tested on every device that they have."""

from tests.devices import deselect_float64_on_cuda, device, parallelism  # noqa: F401, pytest finds them here


def pytest_collection_modifyitems(config, items):
    deselect_float64_on_cuda(config, items)
