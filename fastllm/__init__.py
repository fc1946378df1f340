"""Hand-written Transformer kernels for CPU and CUDA as PyTorch ops, layers and models.

    import fastllm
    fastllm.ops.layer_norm(...)      # the functional API
    fastllm.nn.LayerNorm(...)        # layers
    fastllm.models.GPT(...)          # models
    fastllm.optim.AdamW(...)         # the optimizer
    fastllm.generate(model, ids, n)  # sampling
    fastllm.translate(model, ...)    # translation
    fastllm.patch(model)             # any PyTorch model on these kernels

Parts are imported when first used, so that `import fastllm` itself costs nothing.
"""

import importlib
from typing import Any

_MODULES = ("data", "generation", "integrations", "models", "nn", "ops", "optim", "tokenizers", "train")
# Names, and the modules that have them.
_FUNCTIONS = {"generate": "generation", "patch": "patching", "translate": "generation", "unpatch": "patching"}

__all__ = [*_MODULES, *_FUNCTIONS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastllm.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"fastllm.{_FUNCTIONS[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fastllm")
    raise AttributeError(f"module 'fastllm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)  # what a prompt completes, imported or not
