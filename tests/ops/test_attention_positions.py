"""causal_align="key-lengths": a query stands where its batch element's number of keys puts it."""

import pytest
import torch

from fastllm import ops
from tests import reference
from tests.ops import harness

sdpa = ops.scaled_dot_product_attention


def problem(lengths, tq, tk, h=2, hkv=2, d=8):
    shapes = [(len(lengths), heads, t, d) for heads, t in ((h, tq), (hkv, tk), (hkv, tk))]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def expected(lengths, tq, **options):
    """Return the reference, whose `shift` may be a number a batch element."""
    shift = (lengths - tq)[:, None, None, None]
    return lambda q, k, v, *m: reference.attention(q, k, v, *m, shift=shift, key_lengths=lengths, **options)


# Fewer keys than queries, none, one, around a tile of keys, all.
LENGTHS = torch.tensor([5, 0, 1, 64, 65, 129, 140])


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("tq", [1, 9, 70])
def test_causal(tq, dtype, device):
    harness.assert_matches_reference(
        lambda q, k, v: sdpa(q, k, v, is_causal=True, key_lengths=LENGTHS.to(device), causal_align="key-lengths"),
        expected(LENGTHS, tq, is_causal=True),
        problem(LENGTHS, tq, 140),
        dtype,
        device=device,
    )


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [(-1, -1), (3, 2), (70, 0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_windows_slopes_and_biases_measure_from_there(with_bias, window, is_causal, device):
    lengths, slopes = torch.tensor([5, 90, 130, 66]), torch.rand(4)
    bias = [torch.randn(4, 9, 130, dtype=torch.float64, requires_grad=True)] if with_bias else []
    options = {"is_causal": is_causal, "window": window, "softcap": 2.0 if with_bias else None}
    harness.assert_matches_reference(
        lambda q, k, v, *m: sdpa(
            q, k, v, *m, enable_gqa=True, key_lengths=lengths.to(device), causal_align="key-lengths",
            alibi_slopes=slopes.to(device), **options,
        ),
        expected(lengths, 9, alibi_slopes=slopes, **options),
        [*problem(lengths, 9, 130, h=4), *bias],
        torch.float32,
        device=device,
    )  # fmt: skip


def test_is_what_decode_attention_does():
    q, k, v = (x.detach().float() for x in problem(LENGTHS, 3, 140))
    ours = sdpa(q, k, v, is_causal=True, key_lengths=LENGTHS, causal_align="key-lengths", window=(20, 0))
    torch.testing.assert_close(ours, ops.decode_attention(q, k, v, LENGTHS, window=(20, 0)))


def test_of_full_lengths_is_bottom_right():
    q, k, v = (x.detach() for x in problem([0, 0], 5, 9))
    lengths = torch.tensor([9, 9])
    ours = sdpa(q, k, v, is_causal=True, key_lengths=lengths, causal_align="key-lengths")
    assert torch.equal(ours, sdpa(q, k, v, is_causal=True, causal_align="bottom-right"))


def test_dropout_and_rows_that_see_nothing(device):
    lengths, state = torch.tensor([2, 7]), torch.tensor([3, 4])
    multipliers = reference.attention_multipliers((2, 2, 5, 9), 0.5, state)
    q, k, v = (x.detach().float() for x in problem(lengths, 5, 9))
    q.requires_grad_()
    output = sdpa(
        *harness.on(device, [q, k, v]), None, 0.5, True, key_lengths=lengths.to(device), causal_align="key-lengths",
        rng_state=state.to(device),
    )  # fmt: skip
    wanted = expected(lengths, 5, is_causal=True, multipliers=multipliers)(q, k, v)
    torch.testing.assert_close(output.cpu(), wanted)
    assert not output[0, :, :3].any()  # they would stand before the first key


def test_gradcheck():
    lengths = torch.tensor([2, 5])
    assert torch.autograd.gradcheck(
        lambda *x: sdpa(*x, is_causal=True, key_lengths=lengths, causal_align="key-lengths"), problem(lengths, 4, 5)
    )


def test_op_contract_and_compile():
    lengths = torch.tensor([2, 5])
    q, k, v = (x.detach().float().requires_grad_() for x in problem(lengths, 4, 5))
    args = (q, k, v, None, 0.0, True, None, False, lengths, None, False, True, None, None, None, None, None)
    harness.assert_op_contract(torch.ops.fastllm.scaled_dot_product_attention.default, args)
    harness.assert_compiles(
        lambda *x: sdpa(*x, is_causal=True, key_lengths=lengths, causal_align="key-lengths"), [q, k, v]
    )


def test_other_forms():
    q = torch.randn(2, 3, 5, 8)  # (B1, B2, T, D) with heads, and (B, T, D) without
    lengths = torch.tensor([[2, 5, 3], [1, 4, 5]])
    options = {"is_causal": True, "causal_align": "key-lengths"}
    heads = sdpa(*[q.unsqueeze(2)] * 3, key_lengths=lengths, **options)
    for row in range(2):
        assert torch.equal(sdpa(*[q[row]] * 3, key_lengths=lengths[row], **options), heads[row, :, 0])


Q = torch.randn(1, 2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"'key_lengths' must be given with causal_align='key-lengths', got None"),
        (
            {"key_lengths": torch.tensor([2]), "segment_ids": torch.zeros(1, 3, dtype=torch.int64)},
            r"'segment_ids' must be None with causal_align='key-lengths', got a Tensor",
        ),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=f"^scaled_dot_product_attention: {message}"):
        sdpa(Q, Q, Q, is_causal=True, causal_align="key-lengths", **options)
