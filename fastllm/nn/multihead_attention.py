"""torch.nn.MultiheadAttention on fastllm's attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._attention_weights import attention_weights
from fastllm.nn._drop_in import adopt, drop_in_for
from fastllm.nn._masks import Visibility, visibility
from fastllm.nn.linear import multiply

# B batch, H heads, Tq queries, Tk keys, D head_dim, E = H D embed_dim


@drop_in_for(torch.nn.MultiheadAttention)
class MultiheadAttention(torch.nn.MultiheadAttention):
    """Drop-in for torch.nn.MultiheadAttention ("Attention is all you need", 3.2): same constructor and state_dict.

    One way through it serves training and evaluation. It gives torch's outputs, and differs where torch's surprise:

    - A query that may see no key gets zeros, and so do its gradients, where torch gives NaN on some of its paths.
    - Weights that are asked for come beside the fused output, which they do not slow down, and never have dropout in
      them; need_weights may name the heads whose weights are wanted.
    - is_causal needs no mask. Given both, a query sees what both let it see.
    - out_proj is called, so what stands in its place (LoRA, int8, a hook) acts.
    - Padding behind the sequences' ends costs nothing and changes no shape.

    As everywhere in torch.nn, True in a mask hides a key; in scaled_dot_product_attention it lets it take part.

    Args:
        embed_dim: E, the channels.
        num_heads: H; must divide embed_dim.
        dropout: probability of a weight to be zeroed while training.
        bias: whether the projections have one.
        add_bias_kv: append a learned key and value to each sequence.
        add_zero_attn: append a key and value of zeros.
        kdim, vdim: channels of key and value; default E.
        batch_first: whether inputs are (B, T, E), not (T, B, E).
        device, dtype: of the parameters.

    Raises:
        ValueError: embed_dim is not a multiple of num_heads, or one of them is not positive.

    Example:
        >>> attention = MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.zeros(1, 3, 8)
        >>> output, weights = attention(x, x, x, need_weights=False, is_causal=True)
        >>> output.shape, weights
        (torch.Size([1, 3, 8]), None)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_heads > 0 and embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: 'embed_dim' must be a multiple of num_heads ({num_heads}), got {embed_dim}"
            )
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        adopt(self)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | Sequence[int] = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (B, Tq, E) with batch_first, else (Tq, B, E); or (Tq, E).
            key, value: as query, with Tk for Tq and kdim, vdim for E.
            key_padding_mask: (B, Tk), or (Tk,) of inputs without a batch; bool (True hides) or floating (added to the
                scores).
            need_weights: whether to return the weights too, or the numbers of the heads whose weights are wanted. They
                take Tq x Tk numbers each, and the output nothing of that kind.
            attn_mask: (Tq, Tk) or (B H, Tq, Tk); bool (True hides) or floating (added to the scores, differentiable).
            average_attn_weights: whether weights are averaged over the heads.
            is_causal: whether query i sees the keys up to i only; with or without a mask.

        Returns:
            The output, of query's shape, and the weights: (B, Tq, Tk) averaged, else (B, H, Tq, Tk), without B where
            the inputs have none; None if they are not wanted.

        Raises:
            ValueError: shapes do not fit, attn_mask hides all there is, or there is no such head.
            TypeError: a mask is neither bool nor floating.
            NotImplementedError: an input is a nested tensor.
        """
        self._check(query, key, value, key_padding_mask)
        batched = query.dim() == 3
        if not batched:
            together = {id(x): x.unsqueeze(self._batch_dim) for x in (query, key, value)}  # one tensor stays one
            query, key, value = (together[id(x)] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch = query.size(self._batch_dim)
        tq, tk = query.size(1 - self._batch_dim), key.size(1 - self._batch_dim)
        shape = (batch, self.num_heads, tq, tk)
        seen = visibility("MultiheadAttention", shape, attn_mask, key_padding_mask, is_causal)
        dropout = self.dropout if self.training else 0.0
        more = (self.bias_k is not None) + self.add_zero_attn
        if query is key and key is value and self._qkv_same_embed_dim and not more:
            qkv = self._heads(multiply(query, self.in_proj_weight, self.in_proj_bias), 3)  # (B, T, 3, H, D)
            q, k = qkv.select(2, 0).transpose(1, 2), qkv.select(2, 1).transpose(1, 2)
            attended = ops.attention_packed(qkv, **_options(seen, dropout))
        else:
            q, k, v = self._project(query, key, value)
            if more:
                k, v, seen = *self._append(k, v), seen.with_more_keys((batch, tq, tk), more)
            attended = ops.scaled_dot_product_attention(q, k, v, **_options(seen, dropout)).transpose(1, 2)
        attended = attended.flatten(-2)  # (B, Tq, E)
        output = self.out_proj(attended if self.batch_first else attended.transpose(0, 1))
        weights = self._weights(q, k, seen, need_weights, average_attn_weights) if need_weights else None
        if batched:
            return output, weights
        return output.squeeze(self._batch_dim), None if weights is None else weights.squeeze(0)

    def attend_within(self, input: Tensor, segment_ids: Tensor, is_causal: bool = False) -> Tensor:
        """Attend within sequences that are packed into a row, without padding.

        Args:
            input: (1, N, E), the sequences one behind the other, whatever batch_first says.
            segment_ids: (1, N) int, non-decreasing: the sequence of each token.
            is_causal: whether a token sees those before it in its sequence, and itself, only.

        Returns:
            (1, N, E).
        """
        qkv = multiply(input, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        dropout = self.dropout if self.training else 0.0
        attended = ops.attention_packed(qkv, dropout_p=dropout, is_causal=is_causal, segment_ids=segment_ids)
        return self.out_proj(attended.flatten(-2))

    @property
    def _batch_dim(self) -> int:
        return 0 if self.batch_first else 1

    def _heads(self, projected: Tensor, parts: int) -> Tensor:
        """Return (B, T, parts, H, D) of what a projection gave, batch first or not."""
        heads = projected.unflatten(-1, (parts, self.num_heads, self.head_dim))
        return heads if self.batch_first else heads.transpose(0, 1)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values, (B, H, T, D) each."""
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if not self._qkv_same_embed_dim:
            weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif key is value:  # one product for both
            one = self.embed_dim
            bias = None if self.in_proj_bias is None else self.in_proj_bias[one:]
            q = self._heads(multiply(query, self.in_proj_weight[:one], biases[0]), 1)
            kv = self._heads(multiply(key, self.in_proj_weight[one:], bias), 2)
            return [part.transpose(1, 2) for part in (q.squeeze(2), *kv.unbind(2))]
        else:
            weights = tuple(self.in_proj_weight.chunk(3))
        parts = zip((query, key, value), weights, biases, strict=True)
        return [self._heads(multiply(x, w, b), 1).squeeze(2).transpose(1, 2) for x, w, b in parts]

    def _append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned key and value, then those of zeros, to (B, H, Tk, D) each."""
        batch, heads, _, size = key.shape

        def appended(tensor: Tensor, learned: Tensor | None) -> Tensor:
            parts = [tensor]
            if learned is not None:
                parts.append(learned.to(tensor.dtype).view(1, heads, 1, size).expand(batch, -1, -1, -1))
            if self.add_zero_attn:
                parts.append(tensor.new_zeros(batch, heads, 1, size))
            return torch.cat(parts, 2)

        return appended(key, self.bias_k), appended(value, self.bias_v)

    def _weights(
        self, query: Tensor, key: Tensor, seen: Visibility, wanted: bool | Sequence[int], average: bool
    ) -> Tensor:
        mask = seen.attn_mask
        if isinstance(wanted, Sequence):
            heads = list(wanted)
            if not all(isinstance(head, int) and 0 <= head < self.num_heads for head in heads):
                raise ValueError(
                    "MultiheadAttention: 'need_weights' must be a bool or numbers of heads in "
                    f"[0, {self.num_heads}), got {wanted}"
                )
            query, key = query[:, heads], key[:, heads]
            mask = mask[:, heads] if mask is not None and mask.dim() == 4 and mask.size(1) > 1 else mask
        weights = attention_weights(query, key, mask, seen.is_causal, key_lengths=seen.key_lengths)
        return weights.mean(1) if average else weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> None:
        inputs = {"query": query, "key": key, "value": value}
        sizes = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for name, tensor in inputs.items():
            if tensor.is_nested:
                raise NotImplementedError(
                    f"MultiheadAttention: '{name}' is a nested tensor: pad it and give a key_padding_mask, which costs "
                    "nothing behind the sequences' ends"
                )
            if tensor.dim() != query.dim() or tensor.dim() not in (2, 3):
                raise ValueError(
                    f"MultiheadAttention: '{name}' must have 3 dimensions, or 2 without a batch, all inputs the same, "
                    f"got {tensor.dim()} and a query of {query.dim()}"
                )
            if tensor.size(-1) != sizes[name]:
                raise ValueError(
                    f"MultiheadAttention: '{name}' must have {sizes[name]} channels, got shape {list(tensor.shape)}"
                )
            if tensor.dim() == 3 and tensor.size(self._batch_dim) != query.size(self._batch_dim):
                raise ValueError(
                    f"MultiheadAttention: '{name}' must have query's batch of {query.size(self._batch_dim)} "
                    f"(batch_first={self.batch_first}), got shape {list(tensor.shape)}"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"MultiheadAttention: 'value' must be as long as key ({list(key.shape)}), got {list(value.shape)}"
            )
        if key_padding_mask is not None and key_padding_mask.dim() != query.dim() - 1:
            expected = "(B, Tk)" if query.dim() == 3 else "(Tk,), as query has no batch"
            raise ValueError(
                f"MultiheadAttention: 'key_padding_mask' must have shape {expected}, got {list(key_padding_mask.shape)}"
            )


def _options(seen: Visibility, dropout: float) -> dict:
    return {
        "attn_mask": seen.attn_mask,
        "dropout_p": dropout,
        "is_causal": seen.is_causal,
        "key_lengths": seen.key_lengths,
    }
