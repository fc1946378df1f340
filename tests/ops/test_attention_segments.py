"""Attention within segments: documents packed into a row see nothing of each other."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness
from tests.ops.test_attention import qkv


def ids_of(lengths):
    """Return the ids of segments of these lengths, (1, T)."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def in_row(lengths, channels=16, h=2):
    """Return a packed projection for one row of these segments."""
    return torch.randn(1, sum(lengths), 3, h, channels, dtype=torch.float64, requires_grad=True)


# One token; one segment; strips of many segments; borders on, before and after those of tiles (64 keys, 96 queries); a
# segment over several tiles between short ones.
LAYOUTS = [[1], [70], [2, 1, 3] * 12, [64, 64], [96, 96], [63, 2, 64], [97, 31, 1, 1], [3, 200, 5]]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
def test_equals_an_explicit_mask(lengths, is_causal, dtype, device):
    ids = ids_of(lengths)
    on_device = ids.to(device)
    same = ids[:, None, :, None] == ids[:, None, None, :]
    visible = same.tril() if is_causal else same
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, is_causal=is_causal, segment_ids=on_device),
        lambda q, k, v: reference.attention(q, k, v, is_causal=is_causal, segment_ids=ids),
        qkv(b=1, tq=sum(lengths)),
        dtype,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, visible),
        device,
    )


def test_each_row_has_its_own_segments(device):
    ids = torch.cat([ids_of(lengths) for lengths in ([70], [3, 60, 7], [65, 5])])
    on_device = ids.to(device)
    harness.assert_matches_reference(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, segment_ids=on_device),
        lambda q, k, v: reference.attention(q, k, v, segment_ids=ids),
        qkv(b=3, tq=70),
        torch.float32,
        device=device,
    )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5), d=st.sampled_from([3, 8, 24]),
    hkv=st.sampled_from([1, 2, 4]), is_causal=st.booleans(), window=st.tuples(st.integers(-1, 90), st.integers(-1, 90)),
    slopes=st.booleans(), softcap=st.sampled_from([None, 2.0]), p=st.sampled_from([0.0, 0.4]), keys=st.booleans(),
    mask=st.sampled_from([None, "bool", "bias"]), dtype=st.sampled_from([torch.int64, torch.int32]), data=st.data(),
)  # fmt: skip
def test_with_everything_else(lengths, d, hkv, is_causal, window, slopes, softcap, p, keys, mask, dtype, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    state, t = torch.tensor([5, 6]), sum(lengths)
    other = torch.randint(0, 2, (1, t)).cumsum(1)  # the second row has other segments than the first
    options = {
        "is_causal": is_causal, "window": window, "softcap": softcap,
        "alibi_slopes": torch.rand(4, dtype=torch.float64) if slopes else None,
        "key_lengths": torch.tensor([t, data.draw(st.integers(0, t))]) if keys else None,
        "segment_ids": torch.cat([ids_of(lengths) * 3 - 7, other]).to(dtype),
    }  # fmt: skip
    inputs = qkv(h=4, hkv=hkv, tq=t, d=d)
    if mask == "bool":
        inputs.append(torch.rand(t, t) > 0.2)
    elif mask == "bias":
        shape = data.draw(st.sampled_from([(t, t), (2, 1, t, t), (4, 1, t)]))
        inputs.append(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    multipliers = reference.attention_multipliers((2, 4, t, t), p, state) if p else None
    harness.assert_matches_reference(
        lambda *x: ops.scaled_dot_product_attention(
            *x, **options, enable_gqa=True, dropout_p=p, rng_state=state if p else None
        ),
        lambda *x: reference.attention(*x, **options, multipliers=multipliers),
        inputs,
        torch.float64,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [[5, 60, 35, 1], [64, 128, 64]], ids=str)
def test_each_document_is_as_if_alone(lengths, dtype):
    packed = in_row(lengths).to(dtype).detach().requires_grad_()
    grad_output = torch.randn(1, sum(lengths), 2, 16, dtype=dtype)
    output = ops.attention_packed(packed, is_causal=True, segment_ids=ids_of(lengths))
    (grad,) = torch.autograd.grad(output, packed, grad_output)
    parts = (x.split(lengths, dim=1) for x in (packed.detach(), grad_output, output, grad))
    for document, its_grad_output, its_output, its_grad in zip(*parts, strict=True):
        alone = document.clone().requires_grad_()
        expected = ops.attention_packed(alone, is_causal=True)
        (expected_grad,) = torch.autograd.grad(expected, alone, its_grad_output)
        harness.assert_close(its_output, expected, dtype, "output")
        harness.assert_close(its_grad, expected_grad, dtype, "gradient")
        if lengths[0] == 64:  # it starts a tile of keys, as it does alone: the same sums in the same order
            assert torch.equal(its_output, expected)


def test_other_documents_are_not_even_computed(device):
    """NaN times a weight of 0 would be NaN. 192 tokens end a tile of keys, one of queries and a strip."""
    packed = in_row([192, 192], h=1).detach().float().to(device)
    packed[:, :192] = torch.nan
    packed.requires_grad_()
    output = ops.attention_packed(packed, segment_ids=ids_of([192, 192]).to(device))
    assert output[:, :192].isnan().all()
    assert output[:, 192:].isfinite().all()
    (grad,) = torch.autograd.grad(output, packed, torch.ones_like(output))
    assert grad[:, 192:].isfinite().all()


def test_dropout_keeps_its_mask(device):
    """The mask is a function of the position in (B, H, T, T) alone: one segment of all is no segments."""
    packed, state = in_row([70]).detach().float().to(device), torch.tensor([3, 4], device=device)
    expected = ops.attention_packed(packed, dropout_p=0.3, rng_state=state)
    segments = torch.zeros(1, 70, dtype=torch.int64, device=device)
    assert torch.equal(ops.attention_packed(packed, dropout_p=0.3, rng_state=state, segment_ids=segments), expected)


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda qkv: ops.attention_packed(qkv, is_causal=True, segment_ids=ids_of([2, 3, 1])), [in_row([2, 3, 1], 3)]
    )


def test_op_contract_compile_threads(threads):
    lengths = [30, 1, 70]
    ids = ids_of(lengths).expand(2, -1)  # no memory of its own for the second row
    q, k, v = (t.detach().float().requires_grad_() for t in qkv(tq=sum(lengths)))
    args = (q, k, v, None, 0.0, True, None, False, None, ids, False, False, None, None, None, None, None)
    harness.assert_op_contract(torch.ops.fastllm.scaled_dot_product_attention.default, args)
    packed = torch.randn(2, 101, 3, 2, 8, requires_grad=True)
    args = (packed, None, 0.0, True, None, None, ids, None, None, None, None, None, None)
    harness.assert_op_contract(torch.ops.fastllm.attention_packed.default, args)
    ours = lambda packed, ids: ops.attention_packed(packed, is_causal=True, segment_ids=ids)  # noqa: E731
    harness.assert_compiles(ours, [packed, ids])
    harness.assert_deterministic(ours, [packed, ids], threads)


def test_no_tokens_and_no_rows(device):
    for b, t in ((0, 5), (2, 0)):
        empty, ids = torch.randn(b, t, 3, 2, 8, device=device), torch.zeros(b, t, dtype=torch.int64, device=device)
        assert ops.attention_packed(empty, segment_ids=ids).shape == (b, t, 2, 8)


Q = torch.randn(2, 1, 3, 8)
PACKED = torch.randn(2, 3, 3, 1, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.attention_packed(PACKED, segment_ids=torch.tensor([[0, 1, 1], [0, 2, 1]])),
            ValueError,
            r"attention_packed: 'segment_ids' must be non-decreasing along a row, got 2 before 1 at \[1, 2\]",
        ),
        (
            lambda: ops.attention_packed(PACKED, segment_ids=torch.zeros(3, dtype=torch.int64)),
            ValueError,
            r"'segment_ids' must have shape \[2, 3\], got \[3\]",
        ),
        (
            lambda: ops.attention_packed(PACKED, segment_ids=torch.zeros(2, 3)),
            TypeError,
            "'segment_ids' must be int64 or int32, got Float",
        ),
        (
            lambda: ops.scaled_dot_product_attention(
                Q, Q[:, :, :2], Q[:, :, :2], segment_ids=torch.zeros(2, 3, dtype=torch.int64)
            ),
            ValueError,
            "'segment_ids' must be given for self-attention, .* got 3 queries and 2 keys",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
