"""The functional API: hand-written kernels as torch custom ops, torch.ops.fastllm.*.

Signatures follow torch.nn.functional name for name where it has the function; extras are keyword-only. Every op works
under autograd, autocast, torch.compile(fullgraph=True) and torch.export, dynamic shapes included, and gives the same
bits on every run and for any number of threads. torch.func.vmap works, as a loop; torch.func.grad does not take
autograd formulas written in C++, as these are: use torch.autograd.grad. Its create_graph=True, for second derivatives,
is refused by attention, dropout, embedding and linear_cross_entropy alone. torch.jit.script, which is deprecated, is
refused; FlopCounterMode counts what it counts for torch's functions.
"""

from fastllm import _extension  # noqa: F401  (registers torch.ops.fastllm.* before the fakes below)
from fastllm.ops import _flops  # noqa: F401  (registers what torch's FLOP counter counts)
from fastllm.ops._report import build_info, report
from fastllm.ops._script import unscriptable
from fastllm.ops._types import naming_wrong_types
from fastllm.ops.attention import attention_packed, scaled_dot_product_attention
from fastllm.ops.bias_relu import bias_relu
from fastllm.ops.cross_entropy import cross_entropy
from fastllm.ops.decode_attention import decode_attention
from fastllm.ops.dropout import dropout, dropout_add
from fastllm.ops.embedding import embedding
from fastllm.ops.gelu import bias_gelu, gelu
from fastllm.ops.linear import linear
from fastllm.ops.linear_cross_entropy import linear_cross_entropy
from fastllm.ops.norm import dropout_add_layer_norm, dropout_add_rms_norm, layer_norm, rms_norm
from fastllm.ops.rotary_embedding import rotary_embedding, rotary_tables
from fastllm.ops.softmax import softmax
from fastllm.ops.swiglu import swiglu

__all__ = [
    "attention_packed",
    "bias_gelu",
    "bias_relu",
    "build_info",
    "cross_entropy",
    "decode_attention",
    "dropout",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "report",
    "rms_norm",
    "rotary_embedding",
    "rotary_tables",
    "scaled_dot_product_attention",
    "softmax",
    "swiglu",
]

# Here and not where they are defined: doctest passes over decorated functions.
for _name in set(__all__) - {"build_info", "report"}:
    globals()[_name] = unscriptable(naming_wrong_types(globals()[_name]))
