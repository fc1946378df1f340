"""Text in, batches of token ids out."""

from fastllm.data.dataset import Batches, TokenData
from fastllm.data.prepare import prepare, read_texts
from fastllm.data.shakespeare import shakespeare_text

__all__ = ["Batches", "TokenData", "prepare", "read_texts", "shakespeare_text"]
