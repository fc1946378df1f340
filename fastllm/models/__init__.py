"""Models assembled from fastllm.nn."""

from fastllm.models.gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
