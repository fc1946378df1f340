"""Models assembled from fastllm.nn, their settings, and `load`, which reads one from any file or folder."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastllm.models.base import Model
    from fastllm.models.config import CONFIGS, GPTConfig, LlamaConfig, ModelConfig, TransformerConfig
    from fastllm.models.decoder import Decoder
    from fastllm.models.formats.torch_transformer import from_torch_transformer
    from fastllm.models.gpt import GPT
    from fastllm.models.llama import Llama
    from fastllm.models.loading import load, model_class, with_weights
    from fastllm.models.transformer import Transformer

__all__ = [
    "CONFIGS", "GPT", "Decoder", "GPTConfig", "Llama", "LlamaConfig", "Model", "ModelConfig", "Transformer",
    "TransformerConfig", "from_torch_transformer", "load", "model_class", "with_weights",
]  # fmt: skip

_MODULES = {
    "base": ("Model",),
    "config": ("CONFIGS", "GPTConfig", "LlamaConfig", "ModelConfig", "TransformerConfig"),
    "decoder": ("Decoder",),
    "formats.torch_transformer": ("from_torch_transformer",),
    "gpt": ("GPT",),
    "llama": ("Llama",),
    "loading": ("load", "model_class", "with_weights"),
    "transformer": ("Transformer",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: settings need no torch, which takes seconds to load."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"fastllm.models.{module}"), name)
    raise AttributeError(f"module 'fastllm.models' has no attribute '{name}'")
