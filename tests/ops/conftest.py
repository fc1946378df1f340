"""Ops are tested on every device that they have."""

from tests.devices import deselect_float64_on_cuda, device  # noqa: F401, pytest finds it here


def pytest_collection_modifyitems(config, items):
    deselect_float64_on_cuda(config, items)
