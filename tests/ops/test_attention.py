"""fastllm.ops.scaled_dot_product_attention and attention_packed."""

import pytest
import torch
import torch.nn.functional as F

from fastllm import ops
from tests import reference
from tests.ops import harness


def qkv(b=2, h=2, tq=5, tk=None, d=8, dv=None, hkv=None):
    tk, hkv, dv = tk or tq, hkv or h, dv or d
    shapes = [(b, h, tq, d), (b, hkv, tk, d), (b, hkv, tk, dv)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def plain(q, k, v):
    return reference.attention(q, k, v)


def causal(q, k, v):
    return reference.attention(q, k, v, is_causal=True)


# One query; around a vector; around a tile of 64; several tiles.
@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("t", [1, 7, 8, 9, 63, 64, 65, 129])
def test_lengths(t, is_causal, dtype):
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
        causal if is_causal else plain,
        qkv(tq=t),
        dtype,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
    )


@pytest.mark.parametrize("d", [1, 8, 20, 32, 80, 128, 256])
def test_head_dims(d):
    for dtype in (torch.float32, torch.float64):
        ours = lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
        harness.assert_matches_reference(ours, causal, qkv(tq=70, d=d, dv=d + 3), dtype)


@pytest.mark.parametrize("align", ["top-left", "bottom-right"])
@pytest.mark.parametrize(("tq", "tk"), [(5, 70), (70, 5), (65, 129)])
def test_causal_alignment(tq, tk, align):
    shift = tk - tq if align == "bottom-right" else 0
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True, causal_align=align),
        lambda q, k, v: reference.attention(q, k, v, is_causal=True, shift=shift),
        qkv(tq=tq, tk=tk),
        torch.float32,
    )


@pytest.mark.parametrize(
    "shape", [(70,), (66, 70), (66, 1), (2, 1, 66, 70), (1, 4, 66, 70), (2, 4, 66, 70), (4, 1, 70)]
)
@pytest.mark.parametrize("hkv", [4, 2])
def test_learned_bias_gets_its_gradient(shape, hkv):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for dtype in (torch.float32, torch.float64):
        harness.assert_matches_reference(
            lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, enable_gqa=True),
            lambda q, k, v, m: reference.attention(q, k, v, m),
            [*qkv(h=4, hkv=hkv, tq=66, tk=70), bias],
            dtype,
        )


def test_bool_mask_with_rows_that_see_nothing():
    mask = torch.rand(2, 1, 66, 70) > 0.5
    mask[:, :, 3] = False
    q, k, v = qkv(tq=66, tk=70)
    ours = lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, mask, is_causal=True)  # noqa: E731
    expected = lambda q, k, v: reference.attention(q, k, v, mask, is_causal=True)  # noqa: E731
    harness.assert_matches_reference(ours, expected, [q, k, v], torch.float32)
    assert not ops.scaled_dot_product_attention(q, k, v, mask)[:, :, 3].any()


def test_key_lengths():
    lengths = torch.tensor([0, 65, 70])
    for dtype in (torch.int64, torch.int32):
        harness.assert_matches_reference(
            lambda q, k, v, n=dtype: ops.scaled_dot_product_attention(q, k, v, key_lengths=lengths.to(n)),
            lambda q, k, v: reference.attention(q, k, v, key_lengths=lengths),
            qkv(b=3, tq=9, tk=70),
            torch.float32,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tq", "tk"), [(9, 9), (66, 70)])
def test_dropout_is_the_contracts(tq, tk, dtype):
    state = torch.tensor([77, 88])
    multipliers = reference.attention_multipliers((2, 2, tq, tk), 0.3, state)
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, dropout_p=0.3, rng_state=state),
        lambda q, k, v: reference.attention(q, k, v, multipliers=multipliers),
        qkv(tq=tq, tk=tk),
        dtype,
    )


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_packed(is_causal, dtype):
    packed = torch.randn(2, 70, 3, 4, 16, dtype=torch.float64, requires_grad=True)

    def expected(packed):
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return reference.attention(q, k, v, is_causal=is_causal).transpose(1, 2)

    def theirs(packed):
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)

    harness.assert_matches_reference(
        lambda x: ops.attention_packed(x, is_causal=is_causal), expected, [packed], dtype, theirs
    )


@pytest.mark.parametrize("layout", ["transposed", "expanded", "last dimension strided"])
def test_any_strides(layout):
    q = torch.randn(2, 9, 3, 16, dtype=torch.float64).transpose(1, 2)
    k = {
        "transposed": torch.randn(2, 9, 3, 16, dtype=torch.float64).transpose(1, 2),
        "expanded": torch.randn(2, 1, 9, 16, dtype=torch.float64).expand(2, 3, 9, 16),
        "last dimension strided": torch.randn(2, 3, 16, 9, dtype=torch.float64).transpose(2, 3),
    }[layout]
    inputs = [q.requires_grad_(), k.requires_grad_(), k.detach().clone().requires_grad_()]
    output, grads = harness.run(ops.scaled_dot_product_attention, inputs)
    expected, expected_grads = harness.run(plain, inputs)
    for a, b in zip([output, *grads], [expected, *expected_grads], strict=True):
        torch.testing.assert_close(a, b)


def test_extremes():
    q, k, v = (t.detach().float() for t in qkv(tq=66))
    for factor in (1e4, 0.0):  # huge logits; all equal
        expected = F.scaled_dot_product_attention((q * factor).double(), k.double(), v.double())
        torch.testing.assert_close(
            ops.scaled_dot_product_attention(q * factor, k, v).double(), expected, rtol=1e-3, atol=1e-3
        )
    for b, t in ((0, 5), (2, 0)):
        empty = torch.randn(b, 2, t, 8)
        assert ops.scaled_dot_product_attention(empty, empty, empty).shape == (b, 2, t, 8)


def test_gradcheck():
    mask = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(
        lambda q, k, v, m: ops.scaled_dot_product_attention(
            q, k, v, m, dropout_p=0.2, is_causal=True, enable_gqa=True, rng_state=state
        ),
        [*qkv(h=4, hkv=2, tq=5, tk=6, d=3), mask],
    )


def test_op_contract_compile_threads(threads):
    q, k, v = (t.detach().float().requires_grad_() for t in qkv(tq=70))
    state = torch.tensor([1, 2])
    args = (q, k, v, None, 0.1, True, None, False, None, False, state)
    harness.assert_op_contract(torch.ops.fastllm.scaled_dot_product_attention.default, args)
    packed = torch.randn(2, 5, 3, 2, 8, requires_grad=True)
    harness.assert_op_contract(torch.ops.fastllm.attention_packed.default, (packed, None, 0.0, True, None, None, None))
    harness.assert_compiles(lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v])
    harness.assert_deterministic(lambda q, k, v: ops.scaled_dot_product_attention(q, k, v), [q, k, v], threads)


def test_autocast_uses_the_lower_precision():
    q, k, v = (t.detach().float() for t in qkv())
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16


Q = torch.randn(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.scaled_dot_product_attention(Q[0], Q, Q), ValueError, r"'query' must have shape \(B, H, T, D\)"),
        (lambda: ops.scaled_dot_product_attention(Q, Q[..., :4], Q), ValueError, r"'key' must have query's head_dim"),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q[:, :2], Q[:, :2]),
            ValueError,
            "'key' must have query's 4 heads",
        ),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, Q[0]), ValueError, "'attn_mask' must broadcast to"),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, dropout_p=2.0), ValueError, "'dropout_p' must be in"),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, causal_align="x"), ValueError, "'causal_align' must be one"),
        (lambda: ops.attention_packed(Q), ValueError, r"'qkv' must have shape \(B, T, 3, H, D\)"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
