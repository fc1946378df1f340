"""Text from a model, token by token."""

from fastllm.generation.sampling import generate

__all__ = ["generate"]
