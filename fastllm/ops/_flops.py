"""What torch.utils.flop_counter.FlopCounterMode counts for the ops: torch's formulas for the same matrix products.

A product of (M, K) and (K, N) is 2 M N K, biases and everything elementwise are nothing. Attention counts every pair
of a query and a key, whatever a mask hides, and its backward the scores once more, which it makes again.
"""

import math

import torch
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

# The formulas get shapes in the place of tensors.
Shape = tuple[int, ...]


@register_flop_formula(torch.ops.fastllm.linear)
def _linear(input: Shape, weight: Shape, *options, out_shape=None, **named) -> int:
    return 2 * math.prod(input) * weight[0]


@register_flop_formula(torch.ops.fastllm.linear_backward)
def _linear_backward(grad_output: Shape, input: Shape | None, weight: Shape | None, *need, out_shape=None) -> int:
    to_weight = 0 if input is None else 2 * math.prod(grad_output) * input[-1]
    to_input = 0 if weight is None else 2 * math.prod(grad_output) * weight[1]
    return to_weight + to_input


# Every head of queries counts with keys and values of its own, as older versions of torch's formulas must have it.


@register_flop_formula(torch.ops.fastllm.scaled_dot_product_attention)
def _attention(query: Shape, key: Shape, value: Shape, *options, out_shape: tuple[Shape, Shape]) -> int:
    return sdpa_flop_count(*_operands(out_shape[0], key[2], query[3]))


@register_flop_formula(torch.ops.fastllm.scaled_dot_product_attention_backward)
def _attention_backward(grad_output: Shape, query: Shape, key: Shape, value: Shape, *options, out_shape=None) -> int:
    return sdpa_backward_flop_count(grad_output, *_operands(grad_output, key[2], query[3]))


@register_flop_formula(torch.ops.fastllm.attention_packed)
def _packed(qkv: Shape, *options, out_shape: tuple[Shape, Shape]) -> int:
    b, t, h, d = out_shape[0]
    return sdpa_flop_count(*_operands((b, h, t, d), t, d))


@register_flop_formula(torch.ops.fastllm.attention_packed_backward)
def _packed_backward(grad_output: Shape, qkv: Shape, *options, out_shape=None) -> int:
    b, t, h, d = grad_output
    return sdpa_backward_flop_count((b, h, t, d), *_operands((b, h, t, d), t, d))


@register_flop_formula(torch.ops.fastllm.decode_attention)
def _decode(query: Shape, k_cache: Shape, v_cache: Shape, *options, out_shape: Shape) -> int:
    return sdpa_flop_count(*_operands(out_shape, k_cache[2], query[3]))  # of full caches: their lengths are no shapes


def _operands(output: Shape, tk: int, d: int) -> tuple[Shape, Shape, Shape]:
    """Return the shapes of queries, keys and values for an output (B, H, Tq, Dv)."""
    b, h, tq, dv = output
    return (b, h, tq, d), (b, h, tk, d), (b, h, tk, dv)


@register_flop_formula(torch.ops.fastllm.linear_cross_entropy)
def _linear_cross_entropy(input: Shape, linear_weight: Shape, *options, out_shape=None, **named) -> int:
    return 2 * math.prod(input) * linear_weight[0]


@register_flop_formula(torch.ops.fastllm.linear_cross_entropy_with_gradients)
def _with_gradients(input: Shape, linear_weight: Shape, *options, out_shape=None) -> int:
    need_input, need_weight, _ = options[-3:]
    return 2 * math.prod(input) * linear_weight[0] * (1 + need_input + need_weight)


@register_flop_formula(torch.ops.fastllm.linear_cross_entropy_backward)
def _linear_cross_entropy_backward(
    grad_output: Shape, input: Shape, linear_weight: Shape, *options, out_shape=None
) -> int:
    return _with_gradients(input, linear_weight, *options)  # the logits are made again
