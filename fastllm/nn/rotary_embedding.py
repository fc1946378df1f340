"""Rotary position embedding as a layer that owns its tables."""

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn.position_tables import PositionTables

# B batch, H heads, T tokens, D head_dim


class RotaryEmbedding(PositionTables):
    """Turn queries or keys by the angles of their positions (Su et al., "RoFormer", 2021).

    The tables of cosines and sines are buffers that no state_dict holds, in float32 whatever dtype the model is taken
    to: bfloat16 has too few bits for far positions.

    Args:
        dim: how many of a head's dimensions turn, the first ones; even, at most D.
        context_length: how many positions the tables start with. A longer input makes them grow.
        base: the slowest pair takes nearly 2 pi base positions a turn.
        frequencies, scale: of the tables, as for :func:`fastllm.ops.rotary_tables`; no state_dict holds them either.
        interleaved: False pairs element i with i + dim / 2 (GPT-NeoX, LLaMA); True pairs 2 i with 2 i + 1 (GPT-J).
        layout: of the input: "bhtd" is (B, H, T, D), "bthd" is (B, T, H, D).

    Raises:
        ValueError: dim is odd or negative, context_length is negative, base is not positive, or frequencies do not have
            the shape (dim / 2,).

    Example:
        >>> rotary = RotaryEmbedding(8)
        >>> query = torch.randn(1, 2, 3, 8)
        >>> later = rotary(query, positions=torch.tensor([5]))  # the first of the three tokens is at position 5
        >>> torch.allclose(later.norm(dim=-1), query.norm(dim=-1))
        True
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        dim: int,
        context_length: int = 2048,
        base: float = 10000.0,
        *,
        frequencies: Tensor | None = None,
        scale: float = 1.0,
        interleaved: bool = False,
        layout: str = "bhtd",
    ) -> None:
        super().__init__()
        self.dim, self.base, self.scale, self.interleaved, self.layout = dim, base, scale, interleaved, layout
        # Neither a buffer nor on a device: new tables are made of these wherever and in whatever dtype the model is.
        self.frequencies = None if frequencies is None else frequencies.detach().to("cpu", torch.float64, copy=True)
        self.make_tables(context_length, None)

    @property
    def table(self) -> Tensor:
        """The cosines, a row a position."""
        return self.cos

    def make_tables(self, length: int, device: torch.device | None) -> None:
        """Make the tables of so many positions."""
        with torch.inference_mode(False), torch.no_grad():  # or a table made while generating could not be trained with
            cos, sin = ops.rotary_tables(
                length, self.dim, self.base, frequencies=self.frequencies, scale=self.scale, device=device
            )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, input: Tensor, positions: int | Tensor = 0, *, num_heads: int | None = None) -> Tensor:
        """Turn each token of `input`: (B, H, T, D) or (B, T, H, D) -> a contiguous tensor of that shape.

        The first token of a sequence is at `positions`: one number, or (B,) int64 with a number a sequence; (B, T)
        int64 gives every token's. A tensor does not make the tables grow, as a GPU would have to be waited for to look
        at it: choose context_length, or call `grow` before. With `num_heads` the first so many heads turn and the
        others are copied, as the values of a packed projection are.
        """
        if isinstance(positions, int):
            self.grow(positions + input.size(1 if self.layout == "bthd" else 2))
        return ops.rotary_embedding(
            input,
            self.cos,
            self.sin,
            interleaved=self.interleaved,
            layout=self.layout,
            positions=positions,
            num_heads=num_heads,
        )

    def extra_repr(self) -> str:
        """Return the settings that are not torch's."""
        angles = f"base={self.base}" if self.frequencies is None else "frequencies given"
        scale = "" if self.scale == 1 else f", scale={self.scale}"
        return f"{self.dim}, {angles}{scale}, interleaved={self.interleaved}, layout={self.layout!r}"
