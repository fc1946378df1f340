"""fastllm.ops.decode_attention."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.devices import ON_CUDA
from tests.ops import harness

# B batch, H heads of queries, Hkv of keys and values, Tq queries, S capacity, D head_dim

# One key; around a vector; around a split (64 keys on the CPU, 128 on CUDA); several splits.
LENGTHS = [1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 300]


def inputs(lengths, tq=1, h=2, hkv=None, d=16, dv=None, capacity=None, dtype=torch.float64):
    b, hkv, capacity = len(lengths), hkv or h, capacity or max(lengths)
    query = torch.randn(b, h, tq, d, dtype=dtype)
    k_cache = torch.randn(b, hkv, capacity, d, dtype=dtype)
    v_cache = torch.randn(b, hkv, capacity, dv or d, dtype=dtype)
    return [query, k_cache, v_cache, torch.tensor(lengths)]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("tq", [1, 3])
def test_ragged_lengths(tq, dtype, device):
    harness.assert_matches_reference(
        ops.decode_attention, reference.decode_attention, inputs(LENGTHS, tq), dtype, device=device
    )


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize(("d", "dv"), [(1, 4), (8, 11), (20, 23), (64, 64), (80, 24), (256, 256), (96, 250)])
def test_head_dims(d, dv, dtype, device):
    """Below, at and beside whole vectors; values narrower and wider than keys; the widest that CUDA takes."""
    harness.assert_matches_reference(
        ops.decode_attention, reference.decode_attention, inputs([5, 70], d=d, dv=dv), dtype, device=device
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# The device keeps nothing from one example to the next.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=3), tq=st.integers(1, 5), hkv=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([3, 8, 24]), extra=st.integers(0, 70), left=st.integers(-1, 90),
    slopes=st.sampled_from([0, 1, 2]), softcap=st.sampled_from([None, 2.0]),
)  # fmt: skip
def test_any_combination(dtype, device, lengths, tq, hkv, d, extra, left, slopes, softcap):
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

    options = {"window": (left, -1), "softcap": softcap, "alibi_slopes": alibi if alibi is None else alibi.to(device)}
    harness.assert_matches_reference(
        lambda *x: ops.decode_attention(*x, **options), expected, batch, dtype, device=device
    )


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [16, 20])  # whole vectors, and not
def test_a_sequence_has_the_same_bits_alone_in_a_batch_and_in_a_larger_cache(d, dtype, device):
    batch = inputs([3, 128, 150, 299], tq=2, h=4, hkv=2, d=d, capacity=300, dtype=dtype)
    query, k_cache, v_cache, lengths = harness.on(device, batch)
    together = ops.decode_attention(query, k_cache, v_cache, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = ops.decode_attention(
            query[[b]], k_cache[[b], :, :n].contiguous(), v_cache[[b], :, :n].contiguous(), lengths[[b]]
        )
        assert torch.equal(alone[0], together[b])


@ON_CUDA
def test_blocks_that_take_several_splits_change_no_bits(device):
    """65 heads of 64 splits are over 4096 blocks: some take the first split and the last."""
    query, k_cache, v_cache, _ = inputs([0], d=4, h=1, capacity=64 * 128, dtype=torch.float32)
    lengths = torch.zeros(65, dtype=torch.int64)
    lengths[[3, 64]] = torch.tensor([130, 64 * 128])
    batch = [*(t.expand(65, -1, -1, -1) for t in (query, k_cache, v_cache)), lengths]
    together = ops.decode_attention(*(t.to(device) for t in batch))
    for b in (0, 3, 64):
        alone = ops.decode_attention(*(t[[b]].to(device) for t in batch))
        assert torch.equal(together[[b]], alone)


@pytest.mark.parametrize("group", [1, 3])  # 5 and 15 queries read the same keys: more than CUDA's blocks take
def test_queries_have_the_same_bits_one_by_one_and_together(group, device):
    batch = inputs([130, 67], tq=5, h=2 * group, hkv=2, dtype=torch.float32)
    query, k_cache, v_cache, lengths = harness.on(device, batch)
    together = ops.decode_attention(query, k_cache, v_cache, lengths)
    for i in range(5):
        alone = ops.decode_attention(query[:, :, [i]], k_cache, v_cache, lengths - 4 + i)
        assert torch.equal(alone, together[:, :, [i]])


def test_what_lies_past_the_lengths_is_not_read(device):
    query, k_cache, v_cache, lengths = harness.on(
        device, inputs([5, 64, 0, 128], tq=2, capacity=140, dtype=torch.float32)
    )
    clean = ops.decode_attention(query, k_cache, v_cache, lengths)
    for b, n in enumerate(lengths.tolist()):
        k_cache[b, :, n:] = v_cache[b, :, n:] = float("nan")
    assert torch.equal(ops.decode_attention(query, k_cache, v_cache, lengths), clean)
    assert not clean[2].any()  # no keys: zeros


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_what_a_query_does_not_see_does_not_touch_it(kind, device):
    """The newest token is seen by the last query alone, the oldest by the first of a window of 6."""
    query, k_cache, v_cache, lengths = harness.on(device, inputs([9], tq=3, dtype=torch.float32))
    window = {"window": (5, 0)}
    clean = ops.decode_attention(query, k_cache, v_cache, lengths, **window)
    for position, seen_by in ((8, 2), (1, 0)):
        values = v_cache.clone()
        values[:, :, position] = float(kind)
        actual = ops.decode_attention(query, k_cache, values, lengths, **window)
        for i in range(3):
            assert (
                not actual[:, :, i].isfinite().any() if i == seen_by else torch.equal(actual[:, :, i], clean[:, :, i])
            )


@pytest.mark.parametrize("layout", ["tokens first", "packed", "odd rows", "odd start", "expanded", "strided query"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_strides(dtype, layout, device):
    # Of 152 tokens heads and sequences begin at whole vectors, even where tokens do not.
    query, k_cache, v_cache, lengths = harness.on(device, inputs([150, 9], capacity=152, dtype=dtype))
    plain = ops.decode_attention(query, k_cache, v_cache, lengths)
    if layout == "tokens first":
        k_cache, v_cache = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k_cache, v_cache))
    elif layout == "packed":
        k_cache, v_cache = torch.stack([k_cache, v_cache], 3).unbind(3)
    elif layout == "odd rows":
        k_cache, v_cache = (torch.nn.functional.pad(t, (1, 2))[..., 1:-2] for t in (k_cache, v_cache))
    elif layout == "odd start":
        k_cache, v_cache = (torch.nn.functional.pad(t.flatten(), (1, 0))[1:].view_as(t) for t in (k_cache, v_cache))
    elif layout == "expanded":
        k_cache = k_cache[:1, :1].expand_as(k_cache)
        plain = ops.decode_attention(query, k_cache.contiguous(), v_cache, lengths)
    else:
        query = query.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(ops.decode_attention(query, k_cache, v_cache, lengths), plain)


def test_extremes(device):
    batch = inputs([130, 9], dtype=torch.float32)
    query, k_cache, v_cache, lengths = harness.on(device, batch)
    for factor in (1e4, 0.0):  # huge scores; all equal
        actual = ops.decode_attention(query * factor, k_cache, v_cache, lengths)
        expected = reference.decode_attention(
            *(t.double() if t.is_floating_point() else t for t in (batch[0] * factor, *batch[1:]))
        )
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-3, atol=1e-3)
    clean = ops.decode_attention(query, k_cache, v_cache, lengths)
    k_cache[0, 0, 70] = float("nan")
    actual = ops.decode_attention(query, k_cache, v_cache, lengths)
    assert actual[0, 0].isnan().all()
    assert actual[0, 1].isfinite().all()
    assert ops.decode_attention(query[:0], k_cache[:0], v_cache[:0], lengths[:0]).shape == (0, 2, 1, 16)
    assert ops.decode_attention(query[:, :, :0], k_cache, v_cache, lengths).shape == (2, 2, 0, 16)
    assert ops.decode_attention(query, k_cache, v_cache[..., :0], lengths).shape == (2, 2, 1, 0)
    nothing = ops.decode_attention(query, k_cache[:, :, :0], v_cache[:, :, :0], lengths * 0)
    assert torch.equal(nothing, torch.zeros_like(clean))


def test_scores_of_minus_infinity(device):
    """Splits in which no score is more weigh nothing beside others; alone they give NaN, as softmax does."""
    query, k_cache, v_cache, lengths = harness.on(device, inputs([130], dtype=torch.float32))
    query = query.abs()
    expected = ops.decode_attention(query, k_cache[:, :, 128:], v_cache[:, :, 128:], lengths - 128)
    k_cache[:, :, :128] = -float("inf")
    harness.assert_close(ops.decode_attention(query, k_cache, v_cache, lengths).cpu(), expected.cpu(), torch.float32)
    assert ops.decode_attention(query, k_cache, v_cache, lengths - 2).isnan().all()


def test_op_contract_compile_parallelism(parallelism, device):
    batch = harness.on(device, inputs([300, 9, 70], tq=2, h=4, hkv=2, dtype=torch.float32))
    slopes = torch.rand(4, device=device)
    harness.assert_op_contract(torch.ops.fastllm.decode_attention.default, (*batch, None, 30, slopes, 20.0))
    harness.assert_compiles(ops.decode_attention, batch)
    harness.assert_deterministic(ops.decode_attention, batch, parallelism)


@ON_CUDA
def test_lengths_out_of_range_on_cuda_are_the_nearest_end(device):
    query, k_cache, v_cache, _ = harness.on(device, inputs([9, 9, 9], tq=2, dtype=torch.float32))
    given, nearest = (torch.tensor(lengths, device=device) for lengths in ([-1, 9, 10], [0, 9, 9]))
    outputs = [ops.decode_attention(query, k_cache, v_cache, n) for n in (given, nearest)]
    assert torch.equal(*outputs)


@ON_CUDA
def test_what_cuda_does_not_take(device):
    query, k_cache, v_cache, lengths = harness.on(device, inputs([9], d=257, dtype=torch.float32))
    with pytest.raises(ValueError, match="'k_cache' must have a head_dim of at most 256 on CUDA, got 257"):
        ops.decode_attention(query, k_cache, v_cache, lengths)
    with pytest.raises(ValueError, match="'v_cache' must have a head_dim of at most 256 on CUDA, got 257"):
        ops.decode_attention(query[..., :8], k_cache[..., :8], v_cache, lengths)
    endless = k_cache[:, :, :1, :8].expand(-1, -1, 2**30 + 1, -1)
    with pytest.raises(ValueError, match="'k_cache' must have a capacity of at most 1073741824 on CUDA, got 10737418"):
        ops.decode_attention(query[..., :8], endless, endless, lengths)
    with pytest.raises(TypeError, match="'query' must be float32, bfloat16 or float16 on CUDA, got Double"):
        ops.decode_attention(query.double(), k_cache.double(), v_cache.double(), lengths)


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
        (lambda: ops.decode_attention(Q, K, K, N, softcap=0.0), ValueError, "'softcap' must be positive, got 0"),
        (lambda: ops.decode_attention(Q, K, K, N, alibi_slopes=torch.rand(3)), ValueError, "'alibi_slopes' must have"),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
