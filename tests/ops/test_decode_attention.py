"""fastllm.ops.decode_attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness

# B batch, H heads of queries, Hkv of keys and values, Tq queries, S capacity, D head_dim

# One key; around a vector; around a split (64 keys); several splits.
LENGTHS = [1, 7, 8, 9, 63, 64, 65, 130, 200]


def inputs(lengths, tq=1, h=2, hkv=None, d=16, dv=None, capacity=None, dtype=torch.float64):
    b, hkv, capacity = len(lengths), hkv or h, capacity or max(lengths)
    query = torch.randn(b, h, tq, d, dtype=dtype)
    k_cache = torch.randn(b, hkv, capacity, d, dtype=dtype)
    v_cache = torch.randn(b, hkv, capacity, dv or d, dtype=dtype)
    return [query, k_cache, v_cache, torch.tensor(lengths)]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("tq", [1, 3])
def test_ragged_lengths(tq, dtype):
    harness.assert_matches_reference(ops.decode_attention, reference.decode_attention, inputs(LENGTHS, tq), dtype)


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("d", [1, 8, 20, 64, 80, 256])  # below, at and beside whole vectors
def test_head_dims(d, dtype):
    harness.assert_matches_reference(
        ops.decode_attention, reference.decode_attention, inputs([5, 70], d=d, dv=d + 3), dtype
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=3), tq=st.integers(1, 5), hkv=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([3, 8, 24]), extra=st.integers(0, 70), left=st.integers(-1, 90),
    slopes=st.sampled_from([0, 1, 2]), softcap=st.sampled_from([None, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_any_combination(lengths, tq, hkv, d, extra, left, slopes, softcap, dtype):
    batch = inputs(lengths, tq, h=4, hkv=hkv, d=d, capacity=max(lengths) + extra + 1)
    shape = (4,) if slopes == 1 else (len(lengths), 4)
    alibi = torch.rand(shape, dtype=torch.float64) if slopes else None

    def expected(query, k_cache, v_cache, lengths):
        rows = [
            reference.decode_attention(
                query[[b]], k_cache[[b]], v_cache[[b]], lengths[[b]], window=(left, -1), softcap=softcap,
                alibi_slopes=alibi[[b]] if slopes == 2 else alibi,
            )
            for b in range(len(lengths))
        ]  # fmt: skip
        return torch.cat(rows)

    options = {"window": (left, -1), "alibi_slopes": alibi, "softcap": softcap}
    harness.assert_matches_reference(lambda *x: ops.decode_attention(*x, **options), expected, batch, dtype)


def test_scale_and_equality_with_scaled_dot_product_attention():
    query, k_cache, v_cache, _ = inputs([70, 70, 70], tq=4, h=4, hkv=2, dtype=torch.float32)
    # Aligned to the end of the keys, so all lengths are the capacity; shorter ones are taken by cutting the cache.
    for n in (4, 33, 70):
        ours = ops.decode_attention(query, k_cache, v_cache, torch.full((3,), n), scale=0.3, window=(20, 0))
        theirs = ops.scaled_dot_product_attention(
            query, k_cache[:, :, :n], v_cache[:, :, :n], is_causal=True, scale=0.3, enable_gqa=True, window=(20, 0),
            causal_align="bottom-right", key_lengths=torch.full((3,), n),
        )  # fmt: skip
        harness.assert_close(ours, theirs, torch.float32)


def test_a_sequence_has_the_same_bits_alone_in_a_batch_and_in_a_larger_cache():
    query, k_cache, v_cache, lengths = inputs([3, 64, 150, 199], tq=2, h=4, hkv=2, capacity=200, dtype=torch.float32)
    together = ops.decode_attention(query, k_cache, v_cache, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = ops.decode_attention(
            query[[b]], k_cache[[b], :, :n].contiguous(), v_cache[[b], :, :n].contiguous(), lengths[[b]]
        )
        assert torch.equal(alone[0], together[b])


def test_queries_have_the_same_bits_one_by_one_and_together():
    query, k_cache, v_cache, lengths = inputs([130, 67], tq=5, h=4, hkv=2, dtype=torch.float32)
    together = ops.decode_attention(query, k_cache, v_cache, lengths)
    for i in range(5):
        alone = ops.decode_attention(query[:, :, [i]], k_cache, v_cache, lengths - 4 + i)
        assert torch.equal(alone, together[:, :, [i]])


def test_what_lies_past_the_lengths_is_not_read():
    query, k_cache, v_cache, lengths = inputs([5, 64, 0], tq=2, capacity=70, dtype=torch.float32)
    clean = ops.decode_attention(query, k_cache, v_cache, lengths)
    for b, n in enumerate(lengths.tolist()):
        k_cache[b, :, n:] = v_cache[b, :, n:] = float("nan")
    assert torch.equal(ops.decode_attention(query, k_cache, v_cache, lengths), clean)
    assert not clean[2].any()  # no keys: zeros


@pytest.mark.parametrize("layout", ["tokens first", "packed", "expanded", "strided query"])
def test_any_strides(layout):
    query, k_cache, v_cache, lengths = inputs([70, 9], dtype=torch.float32)
    plain = ops.decode_attention(query, k_cache, v_cache, lengths)
    if layout == "tokens first":
        k_cache, v_cache = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k_cache, v_cache))
    elif layout == "packed":
        k_cache, v_cache = torch.stack([k_cache, v_cache], 3).unbind(3)
    elif layout == "expanded":
        k_cache = k_cache[:1, :1].expand_as(k_cache)
        plain = ops.decode_attention(query, k_cache.contiguous(), v_cache, lengths)
    else:
        query = query.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(ops.decode_attention(query, k_cache, v_cache, lengths), plain)


def test_extremes():
    query, k_cache, v_cache, lengths = inputs([130, 9], dtype=torch.float32)
    for factor in (1e4, 0.0):  # huge scores; all equal
        actual = ops.decode_attention(query * factor, k_cache, v_cache, lengths)
        expected = reference.decode_attention(
            *(t.double() if t.is_floating_point() else t for t in (query * factor, k_cache, v_cache, lengths))
        )
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)
    k_cache[0, 0, 70] = float("nan")
    actual = ops.decode_attention(query, k_cache, v_cache, lengths)
    assert actual[0, 0].isnan().all()
    assert actual[0, 1].isfinite().all()
    assert ops.decode_attention(query[:0], k_cache[:0], v_cache[:0], lengths[:0]).shape == (0, 2, 1, 16)
    assert ops.decode_attention(query[:, :, :0], k_cache, v_cache, lengths).shape == (2, 2, 0, 16)


def test_op_contract_compile_threads(threads):
    batch = inputs([200, 9, 70], tq=2, h=4, hkv=2, dtype=torch.float32)
    harness.assert_op_contract(torch.ops.fastllm.decode_attention.default, (*batch, None, 30, torch.rand(4), 20.0))
    harness.assert_compiles(ops.decode_attention, batch)
    harness.assert_deterministic(ops.decode_attention, batch, threads)


def test_a_gradient_is_refused_and_no_grad_is_enough():
    query, *rest = inputs([9], dtype=torch.float32)
    with pytest.raises(ValueError, match="'query' must not require a gradient: it is for inference"):
        ops.decode_attention(query.requires_grad_(), *rest)
    with torch.no_grad():
        assert ops.decode_attention(query, *rest).isfinite().all()


Q, K, N = torch.randn(2, 4, 1, 8), torch.randn(2, 4, 6, 8), torch.tensor([1, 6])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.decode_attention(Q[0], K, K, N), ValueError, r"'query' must have shape \(B, H, Tq, D\)"),
        (lambda: ops.decode_attention(Q.long(), K, K, N), TypeError, "'query' must be float32.*got Long"),
        (lambda: ops.decode_attention(Q, K[..., :4], K, N), ValueError, r"'k_cache' must have query's head_dim \(8\)"),
        (lambda: ops.decode_attention(Q, K[:1], K, N), ValueError, r"'k_cache' must have shape \(2, Hkv, S, D\)"),
        (lambda: ops.decode_attention(Q, K[:, :3], K[:, :3], N), ValueError, "a divisor of query's 4 heads"),
        (lambda: ops.decode_attention(Q, K, K[:, :, :5], N), ValueError, "'v_cache' must have k_cache's heads"),
        (lambda: ops.decode_attention(Q, K.double(), K, N), TypeError, "'k_cache' must have the dtype of 'query'"),
        (lambda: ops.decode_attention(Q, K.mT.contiguous().mT, K, N), ValueError, "a contiguous last dimension"),
        (lambda: ops.decode_attention(Q, K, K, N[:1]), ValueError, r"'lengths' must have shape \[2\], got \[1\]"),
        (lambda: ops.decode_attention(Q, K, K, N.int()), TypeError, "'lengths' must be int64, got Int"),
        (lambda: ops.decode_attention(Q, K, K, N + 1), ValueError, r"in \[0, 6\], the capacity.*got 7 at position 1"),
        (lambda: ops.decode_attention(Q, K, K, N - 2), ValueError, r"'lengths' must be in \[0, 6\].*got -1"),
        (lambda: ops.decode_attention(Q, K, K, N, window=3), ValueError, r"decode_attention: 'window' must be"),
        (lambda: ops.decode_attention(Q, K, K, N, softcap=0.0), ValueError, "'softcap' must be over 0, got 0"),
        (lambda: ops.decode_attention(Q, K, K, N, alibi_slopes=torch.rand(3)), ValueError, "'alibi_slopes' must have"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
