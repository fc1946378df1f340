"""A data folder that trains in a second, runs that draw nothing, and signal handlers put back."""

import signal

import pytest

from fastllm.data import prepare


@pytest.fixture
def data(tmp_path):
    prepare("the quick brown fox jumps over the lazy dog. " * 60, tmp_path / "data", ["made up"])
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Spare the drawing of loss.png, which takes longer than these runs, where a test does not say that it looks."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("fastllm.train.run.plot_loss", lambda run: None)


@pytest.fixture
def pictures():
    """Let runs draw."""


@pytest.fixture(autouse=True)
def signals_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
