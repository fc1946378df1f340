"""A data folder that trains in a second, and signal handlers put back."""

import signal

import pytest

from fastllm.data import prepare


@pytest.fixture
def data(tmp_path):
    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "data", ["made up"])
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def signals_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
