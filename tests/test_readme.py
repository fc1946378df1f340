"""The Python of the README and of docs/ runs, their links and figures hold, and the docstrings' examples are right."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    "attention", "cross_entropy", "decode_attention", "dropout", "embedding", "gelu", "linear",
    "linear_cross_entropy", "norm", "softmax",
]  # fmt: skip
OTHERS = [
    "data.source", "generation.decoding", "generation.segments", "models.gpt", "models.transformer", "nn.kv_cache",
    "nn.multihead_attention", "nn.position_tables", "nn.transformer", "optim", "patching", "tokenizers.base",
    "tokenizers.byte", "tokenizers.character", "tokenizers.sentencepiece",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples write files
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), {})


def test_there_is_python_to_run():
    assert "```python\n" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_are_written_one_way(page):
    """With underscores, as --help and config.yaml have them; the README says once that dashes do too."""
    with_dashes = set(re.findall(r"--[a-z]+-[a-z-]+", page.read_text(encoding="utf-8")))
    assert with_dashes <= {"--max-steps", "--no-build-isolation", "--no-deps"}


def test_measured_parts_are_those_of_the_results():
    assert readme.filled(readme.README, readme.short()) == readme.README.read_text(encoding="utf-8")
    assert readme.filled(readme.DETAILS, readme.full()) == readme.DETAILS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*(f"ops.{m}" for m in MODULES), *OTHERS])
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(f"fastllm.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
