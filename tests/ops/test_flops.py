"""FlopCounterMode counts for every op what it counts for torch's functions, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count

from fastllm import nn, ops

MATRIX_OPS = {"attention", "linear"}  # in the names of all ops that multiply matrices


def count(call):
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def count_both(call):
    """Return what forward and backward count."""
    forward, output = count(call)
    backward, _ = count(output.sum().backward)
    return forward, backward


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_every_op_that_multiplies_matrices_is_counted():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastllm::")]
    for name in (name.removeprefix("fastllm::") for name in names):
        multiplies = any(part in name for part in MATRIX_OPS)
        assert (getattr(torch.ops.fastllm, name) in flop_registry) == multiplies, name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("input",), ("weight",)])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (3,)])
def test_linear(shape, frozen, bias):
    def both(linear):
        x, w = (torch.randn(*s, requires_grad=name not in frozen) for s, name in ((shape, "input"), ((4, 3), "weight")))
        return count_both(lambda: linear(x, w, leaf(4) if bias else None))

    rows = torch.Size(shape[:-1]).numel()
    expected = (2 * rows * 3 * 4, 2 * rows * 3 * 4 * (2 - len(frozen)))
    assert both(ops.linear) == both(F.linear) == expected


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_attention(heads, kv, is_causal):
    q, k, v = leaf(2, heads, 5, 8), leaf(2, kv, 7, 8), leaf(2, kv, 7, 6)
    options = {"is_causal": is_causal, "enable_gqa": heads != kv}
    with sdpa_kernel(SDPBackend.MATH):
        expected, _ = count(lambda: F.scaled_dot_product_attention(q, k, v, **options))
    forward, backward = count_both(lambda: ops.scaled_dot_product_attention(q, k, v, **options))
    assert forward == expected == 2 * 2 * heads * 5 * 7 * (8 + 6)
    # That of the kernels that make the scores again, as ours do.
    assert backward == sdpa_backward_flop_count((2, heads, 5, 6), q.shape, k.shape, v.shape)


@pytest.mark.parametrize("form", [((3, 8), (6, 8)), ((4, 3, 8), (2, 4, 6, 8)), ((2, 1, 3, 8), (1, 4, 6, 8))])
def test_attention_that_broadcasts(form):
    q, k = (leaf(*shape) for shape in form)
    with sdpa_kernel(SDPBackend.MATH):
        expected, _ = count(lambda: F.scaled_dot_product_attention(q, k, k))
    forward, backward = count_both(lambda: ops.scaled_dot_product_attention(q, k, k))
    assert (forward, backward) == (expected, expected // 2 * 5)


@pytest.mark.parametrize(("shape", "num_heads"), [((2, 5, 3, 4, 8), None), ((2, 5, 4 + 2 * 2, 8), 4)])
def test_packed_attention(shape, num_heads):
    q = k = (2, 4, 5, 8)
    k = q if num_heads is None else (2, 2, 5, 8)
    unpacked = count_both(lambda: ops.scaled_dot_product_attention(leaf(*q), leaf(*k), leaf(*k), enable_gqa=True))
    packed = count_both(lambda: ops.attention_packed(leaf(*shape), num_heads=num_heads))
    assert packed == unpacked == (4 * 2 * 4 * 5 * 5 * 8, 10 * 2 * 4 * 5 * 5 * 8)


def test_decode_attention_counts_full_caches():
    cache = torch.randn(2, 2, 16, 8)
    flops, _ = count(lambda: ops.decode_attention(torch.randn(2, 4, 1, 8), cache, cache, torch.tensor([3, 16])))
    assert flops == 4 * 2 * 4 * 16 * 8


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", [False, True])
def test_linear_cross_entropy(reduction, frozen):
    target = torch.tensor([0, 1, 2])
    product = 2 * 3 * 4 * 5

    def both(loss):
        x, w = leaf(3, 4), torch.randn(5, 4, requires_grad=not frozen)
        return count_both(lambda: loss(x, w))

    theirs = both(lambda x, w: F.cross_entropy(F.linear(x, w), target, reduction=reduction))
    ours = both(lambda x, w: ops.linear_cross_entropy(x, w, target, reduction=reduction))
    assert theirs == (product, product * (2 - frozen))
    # For a scalar forward makes the gradients too; for losses a row backward makes the logits again.
    again = product if reduction == "none" else 0
    assert sum(ours) == sum(theirs) + again
    assert ours[0] == (product if again else sum(theirs))
    with torch.no_grad():
        assert count(lambda: ops.linear_cross_entropy(torch.randn(3, 4), torch.randn(5, 4), target))[0] == product


def test_a_layer_counts_what_torchs_counts_by_module():
    layers = torch.nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 2, 16)
    with sdpa_kernel(SDPBackend.MATH):
        theirs, ours = (count(lambda layer=layer: layer(torch.randn(5, 3, 8)))[0] for layer in layers)
    assert ours == theirs > 0


def test_on_meta_tensors():
    with torch.device("meta"):
        assert count(lambda: ops.linear(torch.randn(2, 3), torch.randn(4, 3)))[0] == 2 * 2 * 3 * 4
