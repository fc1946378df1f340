"""The README's Python runs, and the docstrings' examples are right."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

MODULES = [
    "attention", "cross_entropy", "decode_attention", "dropout", "embedding", "gelu", "linear",
    "linear_cross_entropy", "norm", "softmax",
]  # fmt: skip
OTHERS = [
    "generation.decoding", "models.gpt", "nn.kv_cache", "optim", "tokenizers.base", "tokenizers.byte",
    "tokenizers.character", "tokenizers.sentencepiece",
]  # fmt: skip


def test_readme_example_runs():
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("name", [*(f"ops.{m}" for m in MODULES), *OTHERS])
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(f"fastllm.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
