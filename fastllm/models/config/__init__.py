"""What a model is made of: a dataclass an architecture, and what such a model costs. Knows nothing of torch.

A setting of a model is written down here and nowhere else: the options of `fastllm train`, a run's config.yaml, a
model's config.json, estimates and initialisation all read these fields.
"""

from dataclasses import asdict
from typing import Any

from fastllm.models.config.base import ModelConfig
from fastllm.models.config.cost import BlockCost, Cost
from fastllm.models.config.gpt import GPTConfig
from fastllm.models.config.llama import ROPE_SCALINGS, LlamaConfig
from fastllm.models.config.transformer import TransformerConfig

__all__ = [
    "CONFIGS", "DEFAULT", "ROPE_SCALINGS", "BlockCost", "Cost", "GPTConfig", "LlamaConfig", "ModelConfig",
    "TransformerConfig", "to_dict",
]  # fmt: skip

CONFIGS: dict[str, type[ModelConfig]] = {config.kind: config for config in (GPTConfig, LlamaConfig, TransformerConfig)}
DEFAULT = GPTConfig.kind  # where nothing names an architecture, as in the files of the time when there was one


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Return a model's settings with its architecture's name, as files hold them."""
    return {"model": config.kind, **asdict(config)}
