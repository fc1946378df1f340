"""Attention on a GPU beside each of torch's kernels for it, at the shapes of GPT-2 and of FlashAttention's papers.

What is counted are the usual operations of the scores that count: two products forward, five backward.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.bench_ops import both_ways, leaf
from benchmarks.harness import Case
from fastllm import ops

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Shape:
    """B sequences of T tokens, H heads of D channels over kv_heads of keys; a query sees `window` keys up to itself."""

    b: int
    h: int
    t: int
    d: int
    kv_heads: int = 0  # 0: h
    is_causal: bool = True
    window: int = 0  # 0: any number
    dropout: float = 0.0

    def __str__(self) -> str:
        heads = f"H{self.h} over {self.kv_heads}" if self.kv_heads else f"H{self.h}"
        window = f" window {self.window}" if self.window else ""
        return f"B{self.b} {heads} T{self.t} D{self.d}{window}" + (f" dropout {self.dropout}" if self.dropout else "")

    @property
    def flops(self) -> int:
        """Of the forward products of what is visible."""
        most = self.window or self.t  # a causal query sees itself and those before, up to this many
        pairs = most * self.t - most * (most - 1) // 2 if self.is_causal else self.t**2
        return 4 * self.b * self.h * pairs * self.d

    def make(self) -> tuple[torch.Tensor, ...]:
        """Return q, k and v as a model has them, (B, T, H, D) in memory, and with a window its mask."""
        heads = (self.h, self.kv_heads or self.h, self.kv_heads or self.h)
        made = [leaf(self.b, self.t, h, self.d).transpose(1, 2).detach().requires_grad_() for h in heads]
        if self.window:
            made.append(torch.ones(self.t, self.t, dtype=torch.bool).tril().triu(1 - self.window))
        return tuple(made)


SHAPES = (
    Shape(4, 12, 1024, 64),
    Shape(4, 12, 1024, 64, dropout=0.1),
    Shape(2, 16, 4096, 128),
    Shape(2, 16, 4096, 128, is_causal=False),
    Shape(2, 8, 4096, 256),
    Shape(2, 32, 4096, 128, kv_heads=8),
    Shape(1, 16, 16384, 128),
    Shape(1, 16, 16384, 128, window=1024),
)


def ours(shape: Shape) -> Callable:
    window = (shape.window - 1, 0) if shape.window else None

    def call(query, key, value, *_):
        return ops.scaled_dot_product_attention(
            query, key, value, dropout_p=shape.dropout, is_causal=shape.is_causal, window=window,
            enable_gqa=shape.kv_heads > 0,
        )  # fmt: skip

    return call


def sdpa(shape: Shape, backend: SDPBackend | None = None) -> Callable:
    """Return torch's op with the kernel that it chooses, or with one alone."""

    def call(query, key, value, mask=None):
        return F.scaled_dot_product_attention(
            query, key, value, mask, shape.dropout, is_causal=shape.is_causal and mask is None,
            enable_gqa=shape.kv_heads > 0,
        )  # fmt: skip

    def call_by_backend(*inputs):
        with sdpa_kernel(backend):
            return call(*inputs)

    return call if backend is None else call_by_backend


def flex(shape: Shape) -> Callable:
    """Return FlexAttention compiled for a window."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention)

    def is_visible(_batch, _head, query, key):
        return (key <= query) & (key > query - shape.window)

    @functools.cache  # made by the first call, which no graph captures
    def blocks(device):
        return create_block_mask(is_visible, None, None, shape.t, shape.t, device=device)

    def call(query, key, value, *_):
        return compiled(query, key, value, block_mask=blocks(query.device), enable_gqa=shape.kv_heads > 0)

    return call


def cases(shapes: tuple[Shape, ...] = SHAPES) -> Iterator[Case]:
    for shape in shapes:
        others = {name: sdpa(shape, backend) for name, backend in BACKENDS.items()}
        if shape.window:
            others["FlexAttention"] = flex(shape)
        yield from both_ways(
            "scaled_dot_product_attention" + (" causal" if shape.is_causal else ""), str(shape), shape.make,
            ours(shape), sdpa(shape), compiled=False, others=others,
            forward={"flops": shape.flops}, backward={"flops": shape.flops * 7 // 2},
            tolerance=None if shape.dropout else 1e-4,
        )  # fmt: skip
