"""Layers for any PyTorch model. Where torch.nn has the class: same constructor, same state_dict, same outputs."""

from fastllm.nn.activation import GELU, Softmax
from fastllm.nn.attention import CausalSelfAttention, CrossAttention, SelfAttention
from fastllm.nn.dropout import Dropout, DropoutAdd, DropoutAddLayerNorm, DropoutAddRMSNorm
from fastllm.nn.embedding import Embedding, PositionalEmbedding
from fastllm.nn.feed_forward import FeedForward, GatedFeedForward
from fastllm.nn.kv_cache import CacheLayer, KVCache, SourceCache, SourceLayer
from fastllm.nn.linear import Linear, TiedLinear
from fastllm.nn.loss import CrossEntropyLoss, LinearCrossEntropyLoss, head_cross_entropy
from fastllm.nn.multihead_attention import MultiheadAttention
from fastllm.nn.norm import LayerNorm, RMSNorm
from fastllm.nn.position_tables import PositionTables, SinusoidalPositions
from fastllm.nn.rotary_embedding import RotaryEmbedding
from fastllm.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from fastllm.ops._script import refuse_to_script

__all__ = [
    "GELU",
    "CacheLayer",
    "CausalSelfAttention",
    "CrossAttention",
    "CrossEntropyLoss",
    "Dropout",
    "DropoutAdd",
    "DropoutAddLayerNorm",
    "DropoutAddRMSNorm",
    "Embedding",
    "FeedForward",
    "GatedFeedForward",
    "KVCache",
    "LayerNorm",
    "Linear",
    "LinearCrossEntropyLoss",
    "MultiheadAttention",
    "PositionTables",
    "PositionalEmbedding",
    "RMSNorm",
    "RotaryEmbedding",
    "SelfAttention",
    "SinusoidalPositions",
    "Softmax",
    "SourceCache",
    "SourceLayer",
    "TiedLinear",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "head_cross_entropy",
]

refuse_to_script(globals())
