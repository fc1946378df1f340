"""Rotary position embedding (Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021).

Pairs of a query's and a key's elements turn by angles that grow with the token's position, so that their product
depends on how far apart they stand.
"""

import torch
from torch import Tensor

from fastllm.ops._fake import register_fake

# B batch, H heads, T tokens, D head_dim, R <= D the dimensions that turn, P positions in the tables


def rotary_embedding(
    input: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    layout: str = "bhtd",
    positions: int | Tensor = 0,
    num_heads: int | None = None,
) -> Tensor:
    """Turn each pair of a head's first R elements by the angle of its token's position: (x, y) -> (x cos - y sin, ...).

    The gradient is the rotation by the negative angle, and has gradients itself.

    Args:
        input: (B, H, T, D), or (B, T, H, D) with layout="bthd"; any strides. float32, float64, bfloat16 or float16.
        cos: (P, R / 2), the cosine of each position and pair; see :func:`rotary_tables`. The rotation is computed in
            float32 (for float64 inputs in float64), so tables of that dtype are read as they are. They are constants.
        sin: (P, R / 2).
        interleaved: False pairs element i with i + R / 2 (GPT-NeoX, LLaMA); True pairs 2 i with 2 i + 1 (RoFormer,
            GPT-J). Elements from R on stay as they are.
        layout: "bhtd" or "bthd", the order of input's dimensions.
        positions: of the first token, the others follow; or int64 (B,) with a number a sequence, such as
            KVCache.lengths; or int64 (B, T) with the position of every token.
        num_heads: how many of the H heads turn, the first ones; the others are copied. None turns all. Of a packed
            projection (B, T, H + 2 K, D), with its H heads of queries, then K of keys and K of values, H + K turn.

    Returns:
        A contiguous tensor of input's shape and dtype.

    Raises:
        ValueError: shapes do not fit, layout is another, num_heads is not in [0, H], the tables require a gradient, or
            a position is outside them. On CUDA, a tensor's positions outside give NaN instead: nobody waits for the GPU
            to look.
        TypeError: dtypes or devices do not fit.

    Example:
        >>> cos, sin = rotary_tables(8, 2)
        >>> x = torch.tensor([1.0, 0.0]).expand(1, 1, 2, 2)  # two tokens, which turn by 0 and 1 radian
        >>> rotary_embedding(x, cos, sin).squeeze()
        tensor([[1.0000, 0.0000],
                [0.5403, 0.8415]])
    """
    offset, given = (0, positions) if isinstance(positions, Tensor) else (positions, None)
    return torch.ops.fastllm.rotary_embedding.default(
        input, cos, sin, interleaved, layout, offset, given, num_heads=num_heads
    )


def rotary_tables(
    length: int,
    dim: int,
    base: float = 10000.0,
    *,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of rotary_embedding's angles: position / base^(2 i / dim) for pair i.

    Models that were trained for longer contexts have other frequencies, which may be given (Peng et al., "YaRN:
    efficient context window extension of large language models", 2023).

    Args:
        length: P, how many positions.
        dim: R, how many of a head's dimensions turn; even.
        base: the slowest pair takes nearly 2 pi base positions a turn.
        frequencies: (R / 2,), the radians that each pair turns by from one position to the next, best in float64; they
            replace base^(-2 i / dim), and base is not looked at.
        scale: a factor of the cosines and sines, and so of what they turn (YaRN's attention factor).
        device: of the tables.

    Returns:
        cos, sin: (P, R / 2) float32 each, of angles computed in float64: those of far positions are right too.

    Raises:
        ValueError: length is negative, dim is odd or negative, base is not positive, or frequencies do not have the
            shape (R / 2,).

    Example:
        >>> [table.shape for table in rotary_tables(1024, 64)]
        [torch.Size([1024, 32]), torch.Size([1024, 32])]
    """
    if length < 0:
        raise ValueError(f"rotary_tables: 'length' must be at least 0, got {length}")
    if dim < 0 or dim % 2:
        raise ValueError(f"rotary_tables: 'dim' must be even and at least 0, got {dim}")
    if base <= 0:
        raise ValueError(f"rotary_tables: 'base' must be positive, got {base}")
    if frequencies is None:
        frequencies = base ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    elif frequencies.shape != (dim // 2,):
        raise ValueError(
            f"rotary_tables: 'frequencies' must have shape (dim / 2,) = [{dim // 2}], got {list(frequencies.shape)}"
        )
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = positions[:, None] * frequencies.detach().to(positions)
    return (angles.cos() * scale).float(), (angles.sin() * scale).float()


@register_fake("rotary_embedding")
def _(input, *options, **named):
    return input.new_empty(input.shape)
