"""Hand-written Transformer kernels for CPU and CUDA as PyTorch ops, layers and models.

    import fastllm
    fastllm.ops.layer_norm(...)      # the functional API
    fastllm.nn.LayerNorm(...)        # layers
    fastllm.models.GPT(...)          # models
    fastllm.optim.AdamW(...)         # the optimizer
    fastllm.generate(model, ids, n)  # sampling

Parts are imported when first used, so that `import fastllm` itself costs nothing.
"""

import importlib
from typing import Any

_MODULES = ("data", "generation", "models", "nn", "ops", "optim", "tokenizers", "train")

__all__ = [*_MODULES, "__version__", "generate"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastllm.{name}")
    if name == "generate":
        return importlib.import_module("fastllm.generation").generate
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("fastllm")
    raise AttributeError(f"module 'fastllm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)  # what a prompt completes, imported or not
