"""What tests of transformers' models share."""

import pytest


@pytest.fixture
def registered():
    """attn_implementation="fastllm" is known."""
    from fastllm.integrations.transformers import register

    register()
