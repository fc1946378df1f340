"""Sampling from a language model. Knows nothing of tokenizers or text: ids in, ids out."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastllm.errors import UserError
from fastllm.models import GPT

# T tokens, V vocabulary


def generate(
    model: GPT,
    prompt: Sequence[int] | Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Yield new token ids one at a time, each as soon as it is drawn.

    Past the model's context_length, only the last context_length tokens are seen.

    Args:
        model: a GPT; it is put into eval mode while it runs and back afterwards.
        prompt: (T,) ids, at least one.
        max_new_tokens: how many to yield.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among exactly the k likeliest tokens; None draws among all.
        seed: makes the draws repeatable; None takes torch's global generator.

    Raises:
        UserError: the prompt is empty or has ids outside the vocabulary, or an argument is out of range.
    """
    ids = torch.as_tensor(prompt, dtype=torch.int64).flatten()
    _check(model, ids, max_new_tokens, temperature, top_k)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return _generate(model, ids, max_new_tokens, temperature, top_k, generator)


def _check(model: GPT, ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    vocabulary = model.config.vocab_size
    if ids.numel() == 0:
        raise UserError("generate: 'prompt' must have at least one token, got none")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UserError(f"generate: 'prompt' must have ids in [0, {vocabulary}), got {ids.min()} to {ids.max()}")
    if max_new_tokens < 0:
        raise UserError(f"generate: 'max_new_tokens' must be at least 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise UserError(f"generate: 'temperature' must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"generate: 'top_k' must be at least 1, got {top_k}")


def _generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Iterator[int]:
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits = model(ids[-model.config.context_length :].unsqueeze(0))[0, -1]
                token = draw(logits, temperature, top_k, generator)
            yield token
            ids = torch.cat([ids, ids.new_tensor([token])])[-model.config.context_length :]
    finally:
        model.train(was_training)


def draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    """Return one id drawn from logits (V,). Of equal logits at the edge of the top k, just enough are kept."""
    if temperature == 0 or top_k == 1:
        return int(logits.argmax())
    values, ids = logits.float().topk(min(top_k or logits.numel(), logits.numel()))
    chosen = torch.multinomial(torch.softmax(values / temperature, -1), 1, generator=generator)
    return int(ids[chosen])
