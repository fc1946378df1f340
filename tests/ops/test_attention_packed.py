"""fastllm.ops.attention_packed: as many heads of keys as of queries, and with num_heads fewer."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.devices import ON_CUDA
from tests.ops import harness

STATE = torch.tensor([5, 6])
# Heads of queries, and of keys and of values: shared by all, by some, by none.
HEADS = [(4, 1), (6, 2), (3, 3)]


def packed(h, k, b=2, t=70, d=16):
    """Return (B, T, H + 2 K, D)."""
    return torch.randn(b, t, h + 2 * k, d, dtype=torch.float64, requires_grad=True)


def split(qkv, h):
    """Return queries, keys and values as (B, heads, T, D)."""
    k = (qkv.shape[2] - h) // 2
    return (part.transpose(1, 2) for part in qkv.split([h, k, k], 2))


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_equal_heads(is_causal, dtype, device):
    qkv = torch.randn(2, 70, 3, 4, 16, dtype=torch.float64, requires_grad=True)

    def expected(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return reference.attention(q, k, v, is_causal=is_causal).transpose(1, 2)

    def theirs(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)

    harness.assert_matches_reference(
        lambda x: ops.attention_packed(x, is_causal=is_causal), expected, [qkv], dtype, theirs, device
    )


# One token, no whole vectors; several tiles.
@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize(("t", "d"), [(1, 8), (9, 5), (129, 16)])
@pytest.mark.parametrize(("h", "k"), HEADS)
def test_unequal_heads(h, k, t, d, dtype, device):
    harness.assert_matches_reference(
        lambda x: ops.attention_packed(x, is_causal=True, num_heads=h),
        lambda x: reference.attention(*split(x, h), is_causal=True).transpose(1, 2),
        [packed(h, k, t=t, d=d)],
        dtype,
        lambda x: F.scaled_dot_product_attention(*split(x, h), is_causal=True, enable_gqa=True).transpose(1, 2),
        device,
    )


OPTIONS = {
    "key_lengths": torch.tensor([0, 65]),
    "segment_ids": torch.arange(70).expand(2, 70) // 30,
    "window": (40, 3),
    "alibi_slopes": torch.rand(6, dtype=torch.float64),
    "softcap": 0.7,
    "is_causal": True,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, dtype, device):
    value = OPTIONS[option]
    on_device = value.to(device) if isinstance(value, torch.Tensor) else value
    harness.assert_matches_reference(
        lambda x: ops.attention_packed(x, num_heads=6, **{option: on_device}),
        lambda x: reference.attention(*split(x, 6), **{option: value}).transpose(1, 2),
        [packed(6, 2)],
        dtype,
        device=device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(70, 70), (1, 6, 70, 70), (70,)])
def test_a_learned_bias_under_dropout(shape, dtype, device):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    multipliers = reference.attention_multipliers((2, 6, 70, 70), 0.3, STATE)
    harness.assert_matches_reference(
        lambda x, m: ops.attention_packed(x, m, 0.3, num_heads=6, rng_state=STATE.to(device)),
        lambda x, m: reference.attention(*split(x, 6), m, multipliers=multipliers).transpose(1, 2),
        [packed(6, 2), bias],
        dtype,
        device=device,
    )


VIEWS = {
    "part of wider rows": ((2, 9, 8, 24), lambda x: x[..., 3:19]),
    "every other token": ((2, 18, 8, 16), lambda x: x[:, ::2]),
    "heads first": ((2, 8, 9, 16), lambda x: x.transpose(1, 2)),
    "last dimension strided": ((2, 9, 16, 8), lambda x: x.transpose(2, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view, dtype, device):
    shape, look = VIEWS[view]
    harness.assert_matches_reference(
        lambda x: ops.attention_packed(look(x), num_heads=4),
        lambda x: reference.attention(*split(look(x), 4)).transpose(1, 2),
        [torch.randn(shape, dtype=torch.float64, requires_grad=True)],
        dtype,
        device=device,
    )


def test_the_projection_is_read_where_it_is_and_its_gradient_is_one(device):
    qkv = packed(4, 2, t=9).detach().float().to(device)
    harness.assert_copies_nothing(lambda: ops.attention_packed(qkv, num_heads=4))
    qkv.requires_grad_()
    output = ops.attention_packed(qkv, num_heads=4)
    assert output.shape == (2, 9, 4, 16)
    assert output.is_contiguous()
    grad_output = torch.randn_like(output)
    (grad,) = torch.autograd.grad(output, qkv, grad_output)
    assert grad.is_contiguous()
    alone = [part.detach().requires_grad_() for part in split(qkv, 4)]
    apart = ops.scaled_dot_product_attention(*alone, enable_gqa=True).transpose(1, 2)
    assert torch.equal(output, apart)
    expected = torch.cat(torch.autograd.grad(apart, alone, grad_output), 1).transpose(1, 2)
    assert torch.equal(grad, expected)


def test_as_many_keys_as_queries_are_the_five_dimensions(device):
    qkv = torch.randn(2, 9, 3, 4, 16, device=device)
    expected = ops.attention_packed(qkv, is_causal=True)
    assert torch.equal(ops.attention_packed(qkv.flatten(2, 3), is_causal=True, num_heads=4), expected)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)])
def test_empty(shape, device):
    qkv = torch.ones(shape, device=device, requires_grad=True)
    output = ops.attention_packed(qkv, num_heads=4)
    assert output.shape == (*shape[:2], 4, 8)
    output.sum().backward()
    assert qkv.grad.shape == shape


def test_is_deterministic_on_every_device(device, parallelism):
    qkv = packed(4, 2).detach().float().to(device).requires_grad_()
    harness.assert_deterministic(lambda x: ops.attention_packed(x, is_causal=True, num_heads=4), [qkv], parallelism)


def test_gradcheck():
    mask = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, m: ops.attention_packed(x, m, 0.2, True, num_heads=4, softcap=1.5, rng_state=STATE),
        [packed(4, 2, t=5, d=3), mask],
    )


def test_op_contract_and_compile():
    qkv, mask = packed(4, 2, t=5).detach().float().requires_grad_(), torch.randn(5, 5, requires_grad=True)
    args = (qkv, mask, 0.1, True, None, None, None, 3, None, torch.rand(4), 30.0, STATE, 4)
    harness.assert_op_contract(torch.ops.fastllm.attention_packed.default, args)
    harness.assert_compiles(lambda x: ops.attention_packed(x, is_causal=True, num_heads=4), [qkv])
    exported = torch.export.export(
        _Attend(), (qkv.detach(),), dynamic_shapes=({0: torch.export.Dim("b"), 1: torch.export.Dim("t")},)
    )
    other = torch.randn(3, 7, 8, 16)
    assert torch.equal(exported.module()(other), ops.attention_packed(other, num_heads=4))


class _Attend(torch.nn.Module):
    def forward(self, qkv):
        return ops.attention_packed(qkv, num_heads=4)


def test_autocast_uses_the_lower_precision(device):
    qkv = packed(4, 2).detach().float().to(device)
    with torch.autocast(device.type, torch.bfloat16):
        assert ops.attention_packed(qkv, num_heads=4).dtype == torch.bfloat16


QKV = torch.randn(1, 2, 8, 8)
NUM_HEADS = r"'num_heads' must be H of the H \+ 2 K = 8 heads of 'qkv', with K a divisor of H, got "


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.attention_packed(QKV),
            ValueError,
            r"'qkv' must have shape \(B, T, 3, H, D\), or with num_heads \(B, T, H \+ 2 K, D\), got \[1, 2, 8, 8\]",
        ),
        (
            lambda: ops.attention_packed(torch.randn(1, 2, 3, 4, 8), num_heads=4),
            ValueError,
            r"'qkv' must have shape \(B, T, H \+ 2 K, D\) where num_heads is given, got \[1, 2, 3, 4, 8\]",
        ),
        *((lambda h=h: ops.attention_packed(QKV, num_heads=h), ValueError, NUM_HEADS + str(h))
          for h in (-2, 0, 2, 3, 8, 10)),  # among them: K = 3 of 2, a rest of 1, no keys
        (lambda: ops.attention_packed(QKV, num_heads=4.0), TypeError, "'num_heads' must be an int or None, got float"),
        (lambda: ops.attention_packed(QKV.long(), num_heads=4), TypeError, "'qkv' must be float32.*got Long"),
    ],
)  # fmt: skip
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@ON_CUDA
def test_what_cuda_refuses(device):
    with pytest.raises(TypeError, match="'query' must be float32, bfloat16 or float16 on CUDA, got Double"):
        ops.attention_packed(QKV.double().to(device), num_heads=4)
    ops.attention_packed(QKV.to(device), num_heads=4)
