"""fastllm.ops.scaled_dot_product_attention and attention_packed."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.devices import ON_CUDA
from tests.ops import harness


def qkv(b=2, h=2, tq=5, tk=None, d=8, dv=None, hkv=None):
    tk, hkv, dv = tk or tq, hkv or h, dv or d
    shapes = [(b, h, tq, d), (b, hkv, tk, d), (b, hkv, tk, dv)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def plain(q, k, v):
    return reference.attention(q, k, v)


def causal(q, k, v):
    return reference.attention(q, k, v, is_causal=True)


# One query; around a vector; around a tile of keys (64) and of queries (96); several tiles.
@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("t", [1, 7, 8, 9, 63, 64, 65, 97, 129])
def test_lengths(t, is_causal, dtype, device):
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
        causal if is_causal else plain,
        qkv(tq=t),
        dtype,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
        device,
    )


# One channel; no whole vectors; each width of the CUDA kernels' tiles, full and not; values of another width than keys.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("d", "dv"), [(1, 4), (8, 8), (20, 23), (64, 64), (80, 83), (128, 128), (128, 16), (256, 256)])
def test_head_dims(d, dv, dtype, device):
    ours = lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    harness.assert_matches_reference(ours, causal, qkv(b=1, tq=70, d=d, dv=dv), dtype, device=device)


@pytest.mark.parametrize("align", ["top-left", "bottom-right"])
@pytest.mark.parametrize(("tq", "tk"), [(5, 70), (70, 5), (65, 129)])
def test_causal_alignment(tq, tk, align, device):
    shift = tk - tq if align == "bottom-right" else 0
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True, causal_align=align),
        lambda q, k, v: reference.attention(q, k, v, is_causal=True, shift=shift),
        qkv(tq=tq, tk=tk),
        torch.float32,
        device=device,
    )


@pytest.mark.parametrize(
    "shape", [(70,), (66, 70), (66, 1), (2, 1, 66, 70), (1, 4, 66, 70), (2, 4, 66, 70), (4, 1, 70)]
)
@pytest.mark.parametrize(("hkv", "dtype"), [(4, torch.float32), (2, torch.float64), (2, torch.bfloat16)])
def test_learned_bias_gets_its_gradient(shape, hkv, dtype, device):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    harness.assert_matches_reference(
        lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, enable_gqa=True),
        lambda q, k, v, m: reference.attention(q, k, v, m),
        [*qkv(h=4, hkv=hkv, tq=66, tk=70), bias],
        dtype,
        device=device,
    )


# The widest tiles of CUDA: a block's shared memory bounds the rows of float32. 34 queries end none of them.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(34, 40), (34, 1), (40,)])
def test_learned_bias_of_wide_heads(shape, dtype, device):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    harness.assert_matches_reference(
        lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m),
        lambda q, k, v, m: reference.attention(q, k, v, m),
        [*qkv(tq=34, tk=40, d=256), bias],
        dtype,
        device=device,
    )


@pytest.mark.parametrize("bias_dtype", [torch.float64, torch.float32, torch.float16])
def test_a_bias_of_another_dtype_and_any_strides(bias_dtype, device):
    q, k, v = (t.detach().bfloat16() for t in qkv(tq=9))
    bias = torch.randn(9, 2, 9, dtype=bias_dtype).transpose(0, 1).requires_grad_()
    output, (grad,) = harness.run(
        lambda m: ops.scaled_dot_product_attention(q.to(device), k.to(device), v.to(device), m).float(),
        harness.on(device, [bias]),
    )
    expected, (expected_grad,) = harness.run(
        lambda m: reference.attention(q.double(), k.double(), v.double(), m), harness.to([bias], torch.float64)
    )
    assert grad.dtype == bias_dtype
    torch.testing.assert_close(output.cpu().double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grad.cpu().double(), expected_grad, rtol=2e-2, atol=2e-2)


def test_bool_mask_with_rows_that_see_nothing(device):
    mask = torch.rand(2, 1, 66, 70) > 0.5
    mask[:, :, 3] = False
    on_device = mask.to(device)
    q, k, v = qkv(tq=66, tk=70)
    ours = lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, on_device, is_causal=True)  # noqa: E731
    expected = lambda q, k, v: reference.attention(q, k, v, mask, is_causal=True)  # noqa: E731
    harness.assert_matches_reference(ours, expected, [q, k, v], torch.float32, device=device)
    q, k, v = harness.on(device, harness.to([q, k, v], torch.float32))
    assert not ops.scaled_dot_product_attention(q, k, v, on_device)[:, :, 3].any()


def test_key_lengths(device):
    lengths = torch.tensor([0, 65, 70, 1, 69])
    apart = torch.stack([lengths, lengths + 3], -1).to(device)[:, 0]
    for given_lengths in (lengths.to(device), lengths.to(device, torch.int32), apart):
        harness.assert_matches_reference(
            lambda q, k, v, n=given_lengths: ops.scaled_dot_product_attention(q, k, v, key_lengths=n),
            lambda q, k, v: reference.attention(q, k, v, key_lengths=lengths),
            qkv(b=5, tq=9, tk=70),
            torch.float32,
            device=device,
        )


@ON_CUDA
def test_key_lengths_out_of_range_on_cuda_are_the_nearest_end(device):
    q, k, v = (t.detach().float().to(device) for t in qkv(b=2, tq=9, tk=70))
    given, nearest = (torch.tensor(lengths, device=device) for lengths in ([-3, 99], [0, 70]))
    outputs = [ops.scaled_dot_product_attention(q, k, v, key_lengths=n) for n in (given, nearest)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_what_lies_behind_key_lengths_may_be_anything(with_bias, dtype, device):
    """Keys and values of a padded batch are not read there: what they hold reaches neither results nor gradients."""
    inputs = [*qkv(tq=34, tk=70), torch.randn(34, 70, dtype=torch.float64, requires_grad=True)][: 4 if with_bias else 3]
    lengths, results = torch.tensor([7, 69]), []
    for padding in (0.0, torch.nan):
        tensors = harness.to(inputs, dtype)
        for kept in tensors[1:3]:
            for row, length in enumerate(lengths):
                kept.data[row, :, length:] = padding
        output, grads = harness.run(
            lambda *x: ops.scaled_dot_product_attention(*x, key_lengths=lengths.to(device)),
            harness.on(device, tensors),
        )
        results.append([output, *grads])
    for of_zeros, of_nan in zip(*results, strict=True):
        assert torch.equal(of_zeros, of_nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 0.0, -0.5])
def test_scale(scale, dtype, device):
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale),
        lambda q, k, v: reference.attention(q * (scale * math.sqrt(16)), k, v, is_causal=True),
        qkv(tq=70, d=16),
        dtype,
        device=device,
    )


# Windows of nothing but the query's own position, inside a tile, over several, wider than everything; unbounded sides.
@pytest.mark.parametrize("window", [(0, 0), (3, 5), (70, 2), (-1, 4), (40, -1), (1000, 1000)])
@pytest.mark.parametrize(
    ("tq", "tk", "align"), [(150, 150, "top-left"), (20, 130, "bottom-right"), (130, 20, "top-left")]
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_window(window, tq, tk, align, is_causal, device):
    shift = tk - tq if align == "bottom-right" else 0
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, window=window, causal_align=align
        ),
        lambda q, k, v: reference.attention(q, k, v, is_causal=is_causal, window=window, shift=shift),
        qkv(b=1, h=1, tq=tq, tk=tk),
        torch.float32,
        device=device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_batch", [False, True])
def test_alibi_slopes(per_batch, dtype, device):
    slopes = torch.rand(3, 2, dtype=torch.float64).t() if per_batch else torch.rand(3, dtype=torch.float64)
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(
            q, k, v, alibi_slopes=slopes.to(device), causal_align="bottom-right"
        ),
        lambda q, k, v: reference.attention(q, k, v, alibi_slopes=slopes, shift=5),
        qkv(h=3, tq=70, tk=75),
        dtype,
        device=device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_softcap_comes_before_a_learned_bias(dtype, device):
    bias = torch.randn(1, 2, 70, 70, dtype=torch.float64, requires_grad=True)
    harness.assert_matches_reference(
        lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, is_causal=True, softcap=0.7),
        lambda q, k, v, m: reference.attention(q, k, v, m, is_causal=True, softcap=0.7),
        [*qkv(tq=70), bias],
        dtype,
        device=device,
    )


# Tiles that the window cuts on either side, for a bias of each pair and one that all queries share.
@pytest.mark.parametrize("shape", [(150, 150), (150,)])
def test_a_learned_bias_within_a_window(shape, device):
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    harness.assert_matches_reference(
        lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, m, window=(40, 3)),
        lambda q, k, v, m: reference.attention(q, k, v, m, window=(40, 3)),
        [*qkv(b=1, tq=150), bias],
        torch.float32,
        device=device,
    )


@st.composite
def combinations(draw, most_tokens):
    """Draw (inputs, options of the op and the reference, of the op alone, of the reference alone)."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    tq, tk, h = draw(st.integers(1, most_tokens)), draw(st.integers(1, most_tokens)), 4
    state = torch.tensor([5, 6])
    lengths = torch.tensor([tk, draw(st.integers(0, tk))])
    options = {
        "is_causal": draw(st.booleans()),
        "window": draw(st.tuples(st.integers(-1, 90), st.integers(-1, 90))),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "alibi_slopes": draw(st.sampled_from([None, torch.rand(h, dtype=torch.float64)])),
        "key_lengths": draw(st.sampled_from([None, lengths])),
    }
    inputs = qkv(h=h, hkv=draw(st.sampled_from([1, 2, 4])), tq=tq, tk=tk, d=draw(st.sampled_from([3, 8, 24])))
    mask = draw(st.sampled_from([None, "bool", "bias"]))
    if mask == "bool":
        inputs.append(torch.rand(tq, tk) > 0.2)
    elif mask == "bias":
        shape = draw(st.sampled_from([(tq, tk), (2, 1, tq, tk), (h, 1, tk)]))
        inputs.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    p, bottom_right = draw(st.sampled_from([0.0, 0.4])), draw(st.booleans())
    ours = {
        "dropout_p": p, "rng_state": state if p else None, "enable_gqa": True,
        "causal_align": "bottom-right" if bottom_right else "top-left",
    }  # fmt: skip
    multipliers = reference.attention_multipliers((2, h, tq, tk), p, state) if p else None
    return inputs, options, ours, {"multipliers": multipliers, "shift": tk - tq if bottom_right else 0}


def assert_combination_is_right(combination, dtype, device):
    inputs, options, ours, theirs = combination
    ours = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in {**options, **ours}.items()}
    harness.assert_matches_reference(
        lambda *x: ops.scaled_dot_product_attention(*x, **ours),
        lambda *x: reference.attention(*x, **options, **theirs),
        inputs,
        dtype,
        device=device,
    )


@settings(max_examples=40, deadline=None)
@given(combinations(140))
def test_any_combination(combination):
    assert_combination_is_right(combination, torch.float64, harness.CPU)


@ON_CUDA
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(combinations(90), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_combination_on_cuda(device, combination, dtype):
    inputs, options, ours, theirs = combination
    if dtype == torch.bfloat16 and ours["dropout_p"]:
        # Where no query sees two keys, gradients of scores are 0, and torch's just that. Here they are P (dP - delta)
        # with delta of the rounded output, as FlashAttention's are: some of its last place remains.
        _, gradients = harness.run(lambda *x: reference.attention(*x, **options, **theirs), inputs)
        assume(all(gradient.abs().max() > 1e-9 for gradient in gradients))
    assert_combination_is_right(combination, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("tq", "tk", "d"), [(9, 9, 8), (66, 70, 8), (34, 70, 72), (34, 40, 136)])
def test_dropout_is_the_contracts(tq, tk, d, dtype, device):
    state = torch.tensor([77, 88])
    multipliers = reference.attention_multipliers((2, 2, tq, tk), 0.3, state)
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, dropout_p=0.3, rng_state=state.to(device)),
        lambda q, k, v: reference.attention(q, k, v, multipliers=multipliers),
        qkv(tq=tq, tk=tk, d=d),
        dtype,
        device=device,
    )


LAYOUTS = {
    "transposed": ((2, 9, 3, 16), lambda x: x.transpose(1, 2)),
    "expanded": ((2, 1, 9, 16), lambda x: x.expand(2, 3, 9, 16)),
    "last dimension strided": ((2, 3, 16, 9), lambda x: x.transpose(2, 3)),
    "rows that are not aligned": ((2, 3, 9, 17), lambda x: x[..., :16]),
    "rows that begin in a vector": ((2, 3, 9, 24), lambda x: x[..., 1:17]),
    "rows that end in a vector": ((2, 3, 9, 24), lambda x: x[..., :15]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, dtype, device):
    shape, view = LAYOUTS[layout]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(view(q), view(k), view(v)),
        lambda q, k, v: reference.attention(view(q), view(k), view(v)),
        inputs,
        dtype,
        device=device,
    )


# What gives the output's gradient such strides.
USES = {
    "last dimension strided": lambda y: y.transpose(2, 3).contiguous(),
    "last dimension expanded": lambda y: y.sum(-1),
    "rows that are not aligned": lambda y: F.pad(y, (0, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use", USES)
def test_gradients_of_any_strides(use, dtype, device):
    harness.assert_matches_reference(
        lambda q, k, v: USES[use](ops.scaled_dot_product_attention(q, k, v)),
        lambda q, k, v: USES[use](reference.attention(q, k, v)),
        qkv(tq=9, d=16),
        dtype,
        device=device,
    )


@pytest.mark.parametrize("channels", [16, 20])  # whole chunks of 16 bytes, and not
def test_every_element_is_written(channels, device):
    """Outputs of fresh memory that held NaN, as torch fills it here."""
    torch.use_deterministic_algorithms(True)
    try:
        q, k, v = (t.detach().float().to(device).requires_grad_() for t in qkv(tq=66, tk=70, d=channels))
        bias = torch.zeros(66, 70, device=device, requires_grad=True)
        output = ops.scaled_dot_product_attention(q, k, v, bias, is_causal=True)
        grads = torch.autograd.grad(output, [q, k, v, bias], torch.ones_like(output))
    finally:
        torch.use_deterministic_algorithms(False)
    for tensor in (output, *grads):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_deterministic_on_every_device(dtype, device, parallelism):
    bias = torch.randn(70, 70, dtype=torch.float64, requires_grad=True)
    inputs = harness.on(device, harness.to([*qkv(h=4, hkv=2, tq=70), bias], dtype))
    state = torch.tensor([1, 2], device=device)
    harness.assert_deterministic(
        lambda q, k, v, m: ops.scaled_dot_product_attention(
            q, k, v, m, dropout_p=0.3, is_causal=True, enable_gqa=True, rng_state=state
        ),
        inputs,
        parallelism,
    )


def test_gradcheck():
    mask = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    state = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(
        lambda q, k, v, m: ops.scaled_dot_product_attention(
            q, k, v, m, dropout_p=0.2, is_causal=True, enable_gqa=True, softcap=1.5, rng_state=state
        ),
        [*qkv(h=4, hkv=2, tq=5, tk=6, d=3), mask],
    )


def test_op_contract_compile():
    q, k, v = (t.detach().float().requires_grad_() for t in qkv(tq=70))
    state = torch.tensor([1, 2])
    slopes = torch.rand(2)
    args = (q, k, v, None, 0.1, True, None, False, None, None, False, False, 9, 0, slopes, 30.0, state)
    harness.assert_op_contract(torch.ops.fastllm.scaled_dot_product_attention.default, args)
    packed = torch.randn(2, 5, 3, 2, 8, requires_grad=True)
    args = (packed, None, 0.0, True, None, None, None, 3, None, slopes, 30.0, None, None)
    harness.assert_op_contract(torch.ops.fastllm.attention_packed.default, args)
    harness.assert_compiles(lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v])


def test_autocast_uses_the_lower_precision(device):
    q, k, v = (t.detach().float().to(device) for t in qkv())
    with torch.autocast(device.type, torch.bfloat16):
        assert ops.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16


Q = torch.randn(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.scaled_dot_product_attention(Q, Q[..., :4], Q), ValueError, r"'key' must have query's head_dim"),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q[:, :2], Q[:, :2]),
            ValueError,
            "'key' must have the others' 4 heads or 1",
        ),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, Q[0]), ValueError, "'attn_mask' must broadcast to"),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, dropout_p=2.0), ValueError, "'dropout_p' must be in"),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, causal_align="x"), ValueError, "'causal_align' must be one"),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q, Q, window=(3,)),
            ValueError,
            r"'window' must be \(left, right\)",
        ),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, window=(3, -2)), ValueError, "'window' must be"),
        (lambda: ops.scaled_dot_product_attention(Q, Q, Q, window=(3, None)), ValueError, "'window' must be"),
        (lambda: ops.attention_packed(torch.randn(1, 2, 3, 1, 8), window=3), ValueError, "'window' must be.*got 3"),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q, Q, softcap=0.0),
            ValueError,
            "'softcap' must be positive, got 0",
        ),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q, Q, alibi_slopes=torch.rand(3)),
            ValueError,
            r"'alibi_slopes' must have shape \(H\) = \[4\] or \(B, H\) = \[2, 4\], got \[3\]",
        ),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q, Q, alibi_slopes=torch.rand(4, requires_grad=True)),
            ValueError,
            "'alibi_slopes' must not require a gradient",
        ),
        (
            lambda: ops.scaled_dot_product_attention(Q, Q, Q, key_lengths=torch.tensor([5, 6])),
            ValueError,
            r"'key_lengths' must be in \[0, 5\], the number of keys, got 6 at position 1",
        ),
        (
            lambda: ops.attention_packed(torch.randn(1, 2, 3, 1, 8), key_lengths=torch.tensor([-1])),
            ValueError,
            r"attention_packed: 'key_lengths' must be in \[0, 2\], the number of keys, got -1 at position 0",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@ON_CUDA
@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([Q.double()] * 3, TypeError, "'query' must be float32, bfloat16 or float16 on CUDA, got Double"),
        ([torch.randn(1, 1, 2, 257)] * 3, ValueError, "'query' must have a head_dim of at most 256 on CUDA, got 257"),
        ([Q, Q, torch.randn(2, 4, 5, 300)], ValueError, "'value' must have a head_dim of at most 256 on CUDA, got 300"),
    ],
)
def test_what_cuda_refuses(inputs, error, message, device):
    ops.scaled_dot_product_attention(Q.to(device), Q.to(device), Q.to(device))
    with pytest.raises(error, match=message):
        ops.scaled_dot_product_attention(*harness.on(device, inputs))
