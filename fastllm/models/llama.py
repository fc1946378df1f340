"""Llama and its kin (Touvron et al., 2023): Mistral, Qwen2 and Qwen3, equal to transformers' ...ForCausalLM.

What differs from GPT: RMS norm, rotary positions instead of learned ones, several queries to a head of keys and values,
a gated feed-forward network, and no biases. What differs among the kin are settings: see LlamaConfig.
"""

import math

import torch
from torch import Tensor

from fastllm import nn, ops
from fastllm.models.config import LlamaConfig
from fastllm.models.decoder import Decoder, PreNormBlock

# B batch, T tokens, C = n_embd channels, H heads of queries, K of keys and of values, D head_dim, V vocabulary


class Attention(torch.nn.Module):
    """Causal self-attention with rotary positions; H / K queries share keys and values (Ainslie et al., 2023).

    Args:
        config: the model's settings.
        rotary: turns queries and keys; one for all blocks.
    """

    def __init__(self, config: LlamaConfig, rotary: nn.RotaryEmbedding) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = config.n_head, config.kv_heads, config.dropout
        self.window = None if config.window is None else (config.window - 1, -1)  # the token itself is in the window
        d, eps = config.head_size, config.norm_eps
        self.qkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * d, bias=config.qkv_bias)
        self.query_norm = nn.RMSNorm(d, eps) if config.qk_norm else None
        self.key_norm = nn.RMSNorm(d, eps) if config.qk_norm else None
        self.rotary = rotary
        self.projection = nn.Linear(self.heads * d, config.n_embd, bias=False)

    def forward(self, input: Tensor, segment_ids: Tensor | None = None, cache: nn.CacheLayer | None = None) -> Tensor:
        """Attend: (B, T, C) -> (B, T, C); segment_ids and cache as of nn.CausalSelfAttention."""
        qkv = self.qkv(input).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))  # (B, T, H + 2 K, D)
        if self.query_norm is not None and self.key_norm is not None:
            query, key, value = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
            qkv = torch.cat([self.query_norm(query), self.key_norm(key), value], 2)
        positions = 0 if cache is None else cache.positions
        qkv = self.rotary(qkv, positions, num_heads=self.heads + self.kv_heads)  # all but the values turn
        if cache is not None:
            attended = cache.attend(qkv, self.heads, self.window)
        else:
            dropout = self.dropout if self.training else 0.0
            attended = ops.attention_packed(
                qkv, dropout_p=dropout, is_causal=True, segment_ids=segment_ids, window=self.window,
                num_heads=self.heads,
            )  # fmt: skip
        return self.projection(attended.flatten(-2))  # from (B, T, H, D)


class Block(PreNormBlock):
    """One layer of Llama."""

    def __init__(self, config: LlamaConfig, rotary: nn.RotaryEmbedding) -> None:
        super().__init__()
        self.norm_1 = nn.DropoutAddRMSNorm(config.n_embd, config.dropout, config.norm_eps)
        self.attention = Attention(config, rotary)
        self.norm_2 = nn.DropoutAddRMSNorm(config.n_embd, config.dropout, config.norm_eps)
        self.feed_forward = nn.GatedFeedForward(config.n_embd, config.intermediate_size)


class Llama(Decoder[LlamaConfig]):
    """A language model of Llama's architecture.

    Example:
        >>> model = Llama(LlamaConfig.preset("shakespeare"))
        >>> model(torch.zeros(1, 8, dtype=torch.int64)).shape
        torch.Size([1, 8, 65])
    """

    config_class = LlamaConfig
    kernels = (
        "attention_packed", "decode_attention", "dropout_add", "dropout_add_rms_norm", "embedding", "linear",
        "linear_cross_entropy", "linear_cross_entropy_with_gradients", "rms_norm", "rotary_embedding", "swiglu",
    )  # fmt: skip

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        frequencies, scale = rotary_frequencies(config)
        self.rotary = nn.RotaryEmbedding(
            config.head_size, min(config.context_length, 2048), config.rope_base, frequencies=frequencies, scale=scale,
            layout="bthd",
        )  # fmt: skip
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = torch.nn.ModuleList(Block(config, self.rotary) for _ in range(config.n_layer))
        self.norm = nn.DropoutAddRMSNorm(config.n_embd, config.dropout, config.norm_eps)
        tied = config.tie_embeddings
        self.output = nn.TiedLinear(self.embedding) if tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.reset_parameters()

    def embed(self, tokens: Tensor, positions: int | Tensor = 0) -> Tensor:
        """Return the tokens' embeddings: (B, T) int -> (B, T, C); positions are attention's affair."""
        return self.embedding(tokens)

    def cache_shape(self) -> tuple[int, int]:
        """Return K and D."""
        return self.config.kv_heads, self.config.head_size

    def new_cache(self, batch: int, capacity: int | None = None) -> nn.KVCache:
        """Return an empty cache; the tables of angles grow to its capacity, as decoding does not look at positions."""
        cache = super().new_cache(batch, capacity)
        self.rotary.grow(cache.capacity)
        return cache


def rotary_frequencies(config: LlamaConfig) -> tuple[Tensor | None, float]:
    """Return each pair's radians per position, (D / 2,) float64, and what cosines and sines are multiplied with.

    None stands for those of the base alone. Scaling is for contexts longer than the model was first trained with:
    linear (Chen et al., "Extending context window of large language models via positional interpolation", 2023) turns
    all pairs slower; yarn (Peng et al., "YaRN", 2023) only those that turn seldom, with a line in between; llama3
    (Meta, Llama 3.1) draws that line over wavelengths.
    """
    d, base, factor = config.head_size, config.rope_base, config.rope_factor
    if config.rope_scaling == "none":
        return None, 1.0
    frequencies = base ** -(torch.arange(0, d, 2, dtype=torch.float64, device="cpu") / d)
    if config.rope_scaling == "linear":
        return frequencies / factor, 1.0
    context = config.rope_context or config.context_length
    if config.rope_scaling == "llama3":
        low, high = config.rope_low_frequency, config.rope_high_frequency
        turns = context * frequencies / (2 * math.pi)  # in the first context
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / factor), 1.0

    def pair(turns: float) -> float:  # the pair that turns so often in the first context
        return d * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair(config.rope_beta_slow)), d - 1)
    slowed = ((torch.arange(d // 2, dtype=torch.float64, device="cpu") - first) / max(last - first, 0.001)).clamp(0, 1)
    scale = 0.1 * math.log(factor) + 1 if config.rope_attention is None else config.rope_attention
    return frequencies * (1 - slowed + slowed / factor), scale
