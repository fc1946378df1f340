"""The README's Python runs, and the docstrings' examples are right."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

MODULES = ["attention", "cross_entropy", "dropout", "embedding", "gelu", "linear", "norm", "softmax"]


def test_readme_example_runs():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "name",
    [
        *(f"ops.{m}" for m in MODULES),
        "models.gpt",
        "optim",
        *(f"tokenizers.{m}" for m in ("base", "byte", "character", "sentencepiece")),
    ],
)
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(f"fastllm.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
