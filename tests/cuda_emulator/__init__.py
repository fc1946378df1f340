"""CUDA kernels on the CPU: see README.md."""

import pytest

from tests.cuda_emulator import build


def load(name):
    """Return the module `emulated`, `samples` or `planted`, or skip the test where this machine cannot compile it."""
    try:
        return build.load(name)
    except build.CannotBuildError as missing:
        pytest.skip(str(missing))
