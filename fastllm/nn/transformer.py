"""torch.nn's Transformer classes on fastllm's kernels: "Attention is all you need" (Vaswani et al., 2017).

One path serves training and evaluation. Sub-modules are called, so hooks, LoRA and int8 layers act; where one is as it
was made, a fused op reads its parameters instead: a sub-layer's dropout, the residual and the norm behind it are one
pass over memory, as are the feed-forward's bias and activation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastllm.nn._bare import is_untouched
from fastllm.nn._drop_in import adopt, drop_in_for
from fastllm.nn._fused import activate, add, add_and_norm, form_of
from fastllm.nn._masks import check_mask, is_causal_mask, may_look_at
from fastllm.nn._packing import Packing
from fastllm.nn.activation import GELU
from fastllm.nn.dropout import Dropout
from fastllm.nn.linear import Linear
from fastllm.nn.multihead_attention import MultiheadAttention
from fastllm.nn.norm import LayerNorm

Activation = str | Callable[[Tensor], Tensor]
relu = torch.nn.functional.relu

# T tokens, S tokens of the encoder's, B batch, E channels


@drop_in_for(torch.nn.TransformerEncoderLayer)
class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """Drop-in for torch.nn.TransformerEncoderLayer: self-attention and a feed-forward network, each with a residual.

    Args:
        d_model: E, channels.
        nhead: heads; must divide d_model.
        dim_feedforward: channels inside the feed-forward network.
        dropout: probability, of attention's weights, the activations and both sub-layers' outputs.
        activation: "relu", "gelu" or a callable.
        layer_norm_eps: of both norms.
        batch_first: whether inputs are (B, T, E), not (T, B, E).
        norm_first: whether norms stand before the sub-layers ("pre-norm"), not behind the residuals.
        bias: whether linear layers and norms have one.
        device, dtype: of the parameters.

    Raises:
        ValueError: d_model is not a multiple of nhead.
        RuntimeError: activation is another string.

    Example:
        >>> layer = TransformerEncoderLayer(8, 2, batch_first=True)
        >>> layer(torch.zeros(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_heads("TransformerEncoderLayer", d_model, nhead)
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device,
            dtype,
        )  # fmt: skip
        adopt(self)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse what torch's layer calls and this one does not."""
        super().__init_subclass__(**options)
        _refuse_blocks(cls, "_sa_block", "_ff_block")

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Transform each token, looking at the others.

        Args:
            src: (B, T, E) with batch_first, else (T, B, E); or (T, E).
            src_mask: (T, T) or (B H, T, T); bool (True hides) or floating (added to the scores).
            src_key_padding_mask: (B, T), or (T,) without a batch; bool or floating as well.
            is_causal: whether token i sees those up to i only; with or without a mask.

        Returns:
            A tensor of src's shape.
        """
        if not isinstance(self.self_attn, MultiheadAttention):  # torch's layer gives its attention floating masks
            src_mask, src_key_padding_mask = _added(src_mask, src.dtype), _added(src_key_padding_mask, src.dtype)
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return self._transform(src, lambda x: _attend(self.self_attn, x, x, masks))

    def _transform(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            normed, x = add_and_norm(x, attend(self.norm1(x)), self.dropout1, self.norm2)
            return add(x, _feed_forward(self, normed), self.dropout2)
        x, _ = add_and_norm(x, attend(x), self.dropout1, self.norm1)
        x, _ = add_and_norm(x, _feed_forward(self, x), self.dropout2, self.norm2)
        return x

    def _transform_packed(self, x: Tensor, segment_ids: Tensor, is_causal: bool) -> Tensor:
        """Transform sequences that are packed into a row, (1, N, E)."""
        attention: Any = self.self_attn
        return self._transform(x, lambda x: attention.attend_within(x, segment_ids, is_causal))

    def _works_on_tokens(self) -> bool:
        """Return whether all but attention treats each token by itself, and nobody watches: the layer may be packed."""
        known = all(type(part) in _ON_TOKENS and is_untouched(part) for part in self.modules())
        functions = (relu, torch.nn.functional.gelu)
        return known and (isinstance(self.activation, torch.nn.Module) or self.activation in functions)


@drop_in_for(torch.nn.TransformerDecoderLayer)
class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """Drop-in for torch.nn.TransformerDecoderLayer: self-attention, attention to the encoder's output, feed-forward.

    Args:
        d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device,
            dtype: as of TransformerEncoderLayer.

    Raises:
        ValueError: d_model is not a multiple of nhead.
        RuntimeError: activation is another string.

    Example:
        >>> layer = TransformerDecoderLayer(8, 2, batch_first=True)
        >>> layer(torch.zeros(1, 3, 8), torch.zeros(1, 5, 8), tgt_is_causal=True).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_heads("TransformerDecoderLayer", d_model, nhead)
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device,
            dtype,
        )  # fmt: skip
        adopt(self)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse what torch's layer calls and this one does not."""
        super().__init_subclass__(**options)
        _refuse_blocks(cls, "_sa_block", "_mha_block", "_ff_block")

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Transform each token, looking at the others and at the encoder's output.

        Args:
            tgt: (B, T, E) with batch_first, else (T, B, E); or (T, E).
            memory: the encoder's output, as tgt with S for T.
            tgt_mask: (T, T) or (B H, T, T); bool (True hides) or floating (added to the scores).
            memory_mask: (T, S) or (B H, T, S).
            tgt_key_padding_mask: (B, T), or (T,) without a batch; bool or floating as well.
            memory_key_padding_mask: (B, S) or (S,).
            tgt_is_causal: whether token i sees those up to i only; with or without a mask.
            memory_is_causal: whether it sees the encoder's up to i only.

        Returns:
            A tensor of tgt's shape.
        """
        own = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask, "is_causal": tgt_is_causal}
        others = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask, "is_causal": memory_is_causal}
        if self.norm_first:
            normed = self.norm1(tgt)
            normed, x = add_and_norm(tgt, _attend(self.self_attn, normed, normed, own), self.dropout1, self.norm2)
            normed, x = add_and_norm(x, _attend(self.multihead_attn, normed, memory, others), self.dropout2, self.norm3)
            return add(x, _feed_forward(self, normed), self.dropout3)
        x, _ = add_and_norm(tgt, _attend(self.self_attn, tgt, tgt, own), self.dropout1, self.norm1)
        x, _ = add_and_norm(x, _attend(self.multihead_attn, x, memory, others), self.dropout2, self.norm2)
        x, _ = add_and_norm(x, _feed_forward(self, x), self.dropout3, self.norm3)
        return x


@drop_in_for(torch.nn.TransformerEncoder)
class TransformerEncoder(torch.nn.TransformerEncoder):
    """Drop-in for torch.nn.TransformerEncoder: copies of a layer, one behind the other, and a norm.

    The output always has src's shape. At padded tokens it means nothing: as torch's fast path, evaluation without
    gradients leaves them out where that is known to change no other token, and gives zeros there (before norm).

    Args:
        encoder_layer: copied; torch's, ours, or any that takes src_mask, is_causal and src_key_padding_mask.
        num_layers: how many copies.
        norm: behind the last one, or None.
        enable_nested_tensor: whether padded tokens may be left out in evaluation. They are with layers of ours on which
            nobody hooks, a mask that is bool and on the CPU, and no other but a causal one.
        mask_check: whether they are only if they stand behind the ends of their sequences, as in torch; without, other
            ones are left out too.

    Example:
        >>> encoder = TransformerEncoder(TransformerEncoderLayer(8, 2, batch_first=True), num_layers=2)
        >>> encoder(torch.zeros(1, 3, 8), is_causal=True).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        encoder_layer: torch.nn.Module,
        num_layers: int,
        norm: torch.nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        # Not enabled for torch, which would warn of what keeps its fast path from being taken.
        super().__init__(encoder_layer, num_layers, norm, False, mask_check)  # type: ignore[arg-type]
        self.enable_nested_tensor = enable_nested_tensor

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Pass src through the layers.

        Args:
            src, mask, src_key_padding_mask: as of TransformerEncoderLayer.
            is_causal: as there; None looks whether mask is a causal one, where looking waits for no device.

        Returns:
            A tensor of src's shape.
        """
        causal = is_causal_mask(mask)
        if src_key_padding_mask is not None and self._leaves_out(src, None if causal else mask, src_key_padding_mask):
            return self._forward_packed(src, src_key_padding_mask, bool(is_causal) or causal)
        for layer in self.layers:
            known = causal and _needs_no_mask(layer)
            src = layer(
                src,
                src_mask=None if known else mask,
                is_causal=bool(is_causal) or causal,
                src_key_padding_mask=src_key_padding_mask,
            )
        return src if self.norm is None else self.norm(src)

    def _leaves_out(self, src: Tensor, mask: Tensor | None, padding: Tensor) -> bool:
        """Return whether padded tokens are left out."""
        return (
            self.enable_nested_tensor
            and not self.training
            and not torch.is_grad_enabled()
            and mask is None
            and padding.dtype == torch.bool
            and padding.dim() == src.dim() - 1 == 2
            and may_look_at(padding)
            and len(self.layers) > 0
            and all(type(layer) is TransformerEncoderLayer and layer._works_on_tokens() for layer in self.layers)
            and bool(padding.any())
            and not (self.mask_check and bool((padding[:, :-1] & ~padding[:, 1:]).any()))
        )

    def _forward_packed(self, src: Tensor, padding: Tensor, is_causal: bool) -> Tensor:
        batch_first = self.layers[0].self_attn.batch_first
        batched = src if batch_first else src.transpose(0, 1)  # (B, T, E)
        check_mask("TransformerEncoder", "src_key_padding_mask", padding, [tuple(batched.shape[:2])])
        packing = Packing(~padding)
        x = packing.pack(batched)
        for layer in self.layers:
            x = layer._transform_packed(x, packing.segment_ids, is_causal)
        x = packing.unpack(x)
        x = x if batch_first else x.transpose(0, 1).contiguous()
        return x if self.norm is None else self.norm(x)


@drop_in_for(torch.nn.TransformerDecoder)
class TransformerDecoder(torch.nn.TransformerDecoder):
    """Drop-in for torch.nn.TransformerDecoder: copies of a layer, one behind the other, and a norm.

    Args:
        decoder_layer: copied; torch's, ours, or any that takes the same masks by name.
        num_layers: how many copies.
        norm: behind the last one, or None.
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Pass tgt through the layers.

        Args:
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, memory_is_causal: as of
                TransformerDecoderLayer.
            tgt_is_causal: as there; None looks whether tgt_mask is a causal one, where looking waits for no device.

        Returns:
            A tensor of tgt's shape.
        """
        causal = is_causal_mask(tgt_mask)
        for layer in self.layers:
            known = causal and _needs_no_mask(layer)
            tgt = layer(
                tgt,
                memory,
                tgt_mask=None if known else tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=bool(tgt_is_causal) or causal,
                memory_is_causal=memory_is_causal,
            )
        return tgt if self.norm is None else self.norm(tgt)


@drop_in_for(torch.nn.Transformer)
class Transformer(torch.nn.Transformer):
    """Drop-in for torch.nn.Transformer: an encoder, and a decoder that looks at its output.

    Args:
        d_model: E, channels.
        nhead: heads; must divide d_model.
        num_encoder_layers, num_decoder_layers: how many of each.
        dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device, dtype: as of
            TransformerEncoderLayer.
        custom_encoder, custom_decoder: take the place of ours, and are called as ours are.

    Raises:
        ValueError: d_model is not a multiple of nhead.
        RuntimeError: activation is another string.

    Example:
        >>> model = Transformer(8, 2, 1, 1, batch_first=True)
        >>> model(torch.zeros(1, 5, 8), torch.zeros(1, 3, 8), tgt_is_causal=True).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layer = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device,
            dtype,
        )  # fmt: skip

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)

        encoder, decoder = custom_encoder, custom_decoder
        if encoder is None:
            encoder = TransformerEncoder(TransformerEncoderLayer(*layer), num_encoder_layers, norm())
        if decoder is None:
            decoder = TransformerDecoder(TransformerDecoderLayer(*layer), num_decoder_layers, norm())
        super().__init__(d_model, nhead, custom_encoder=encoder, custom_decoder=decoder, batch_first=batch_first)


# What a layer is made of when each of its parts but attention treats every token by itself.
_ON_TOKENS = (
    TransformerEncoderLayer,
    MultiheadAttention,
    *(Dropout, GELU, LayerNorm, Linear),
    *(torch.nn.Dropout, torch.nn.GELU, torch.nn.LayerNorm, torch.nn.Linear, torch.nn.ReLU, torch.nn.SiLU),
)


# ---------------------------------------------------------------------------------------------------------------------
# What the layers are made of
# ---------------------------------------------------------------------------------------------------------------------


def _needs_no_mask(layer: torch.nn.Module) -> bool:
    """Return whether is_causal says all to a layer: it and its attention are ours, and nobody looks at the mask."""
    attention = getattr(layer, "self_attn", None)
    return (
        type(layer) in (TransformerEncoderLayer, TransformerDecoderLayer)
        and type(attention) is MultiheadAttention
        and is_untouched(layer)
        and is_untouched(attention)
    )


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask that is added to the scores: -inf where a bool one hides."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _attend(attention: torch.nn.Module, query: Tensor, memory: Tensor, masks: dict) -> Tensor:
    return attention(query, memory, memory, need_weights=False, **masks)[0]


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    """Return linear2(dropout(activation(linear1(x))))."""
    return layer.linear2(activate(layer.linear1, layer.activation, form_of(layer.activation), x, layer.dropout))


def _check_heads(layer: str, d_model: int, nhead: int) -> None:
    if nhead > 0 and d_model % nhead:
        raise ValueError(f"{layer}: 'd_model' must be a multiple of nhead ({nhead}), got {d_model}")


def _refuse_blocks(cls: type, *names: str) -> None:
    for name in names:
        if name in vars(cls):
            raise TypeError(
                f"{cls.__name__}: '{name}' would never be called: this layer fuses what torch's does there; override "
                "forward, or put modules of your own in the place of its parts"
            )
