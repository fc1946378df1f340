"""What a Transformer block does between its products, in one pass over memory where its layers are as they were made.

A fused op reads a layer's parameters instead of calling it. Where a hook, a subclass or another layer in its place says
that calling it does more, it is called.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastllm import ops
from fastllm.nn._bare import is_bare
from fastllm.nn.activation import GELU
from fastllm.nn.dropout import Dropout
from fastllm.nn.linear import is_bare_linear
from fastllm.nn.norm import LayerNorm


def add_and_norm(residual: Tensor, branch: Tensor, dropout: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return (norm(x), x) where x = residual + dropout(branch)."""
    fused = (
        is_bare(dropout, Dropout, torch.nn.Dropout)
        and is_bare(norm, LayerNorm, torch.nn.LayerNorm)
        and len(norm.normalized_shape) == 1
        and torch.promote_types(branch.dtype, residual.dtype) == residual.dtype
    )
    if fused:
        branch = branch.to(residual.dtype)  # under autocast a branch is half precision; the stream keeps its own
        return ops.dropout_add_layer_norm(
            branch, residual, norm.weight, norm.bias, dropout.p, norm.eps, training=dropout.training
        )
    x = residual + dropout(branch)
    return norm(x), x


def add(residual: Tensor, branch: Tensor, dropout: Any) -> Tensor:
    """Return residual + dropout(branch)."""
    if is_bare(dropout, Dropout, torch.nn.Dropout) and branch.dtype == residual.dtype:
        return ops.dropout_add(branch, residual, dropout.p, dropout.training)
    return residual + dropout(branch)


def activate(linear: Any, activation: Callable[[Tensor], Tensor], form: str, x: Tensor, dropout: Any = None) -> Tensor:
    """Return dropout(activation(linear(x))); the bias, and ReLU's dropout, ride on the activation's pass.

    Args:
        linear, activation, dropout: layers; dropout may be None.
        form: what the activation does, if it need not be called: "relu", or GELU's "none" or "tanh"; "" if it must.
        x: (*, in_features).
    """
    if not (form and is_bare_linear(linear) and linear.bias is not None):
        return dropped(dropout, activation(linear(x)))
    hidden = ops.linear(x, linear.weight)
    bias = linear.bias.to(hidden.dtype)  # under autocast it is not in the product's precision yet
    if form != "relu":
        return dropped(dropout, ops.bias_gelu(hidden, bias, form))
    if is_bare(dropout, Dropout, torch.nn.Dropout):
        return ops.bias_relu(hidden, bias, dropout.p, dropout.training)
    return dropped(dropout, ops.bias_relu(hidden, bias))


def form_of(activation: Any) -> str:
    """Return "relu", or the form of GELU, "none" or "tanh", if that is what an activation is; else ""."""
    if activation in (torch.nn.functional.relu, torch.relu) or is_bare(activation, torch.nn.ReLU):
        return "relu"
    if activation is torch.nn.functional.gelu:
        return "none"
    return activation.approximate if is_bare(activation, GELU, torch.nn.GELU) else ""


def dropped(dropout: Any, x: Tensor) -> Tensor:
    """Return dropout(x); where there is nothing to drop, x itself."""
    return x if dropout is None or (is_bare(dropout, Dropout) and not dropout.p) else dropout(x)
