"""scaled_dot_product_attention of any dimensions, and of batch dimensions and heads that broadcast, as torch's."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import sample_inputs_scaled_dot_product_attention

from fastllm import ops
from tests.ops import harness

sdpa = ops.scaled_dot_product_attention

# query; key; value: torch's own samples' forms first, then each way that dimensions may be missing or 1.
FORMS = [
    ((4, 3, 8), (4, 6, 8), (4, 6, 8)),
    ((4, 3, 8), (2, 4, 6, 8), (2, 4, 6, 8)),
    ((3, 8), (6, 8), (6, 5)),
    ((3, 8), (4, 6, 8), (6, 5)),
    ((3, 8), (2, 4, 6, 8), (2, 1, 6, 5)),
    ((2, 4, 3, 8), (1, 4, 6, 8), (1, 4, 6, 5)),
    ((1, 4, 3, 8), (2, 4, 6, 8), (1, 4, 6, 5)),
    ((2, 4, 3, 8), (2, 1, 6, 8), (2, 1, 6, 5)),
    ((2, 1, 3, 8), (2, 4, 6, 8), (1, 1, 6, 5)),
    ((5, 2, 4, 3, 8), (5, 2, 4, 6, 8), (5, 2, 4, 6, 5)),
    ((5, 2, 4, 3, 8), (2, 1, 6, 8), (5, 1, 4, 6, 5)),
    ((1, 1, 4, 3, 8), (1, 1, 4, 6, 8), (4, 6, 5)),
    ((2, 1, 3, 4, 3, 8), (2, 3, 4, 6, 8), (1, 6, 5)),
    ((0, 4, 3, 8), (1, 4, 6, 8), (1, 1, 6, 5)),
    ((0, 3, 8), (1, 6, 8), (6, 5)),
]


def leaves(form, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in form]


def both(ours, theirs, inputs):
    """Compare outputs and every gradient."""
    (output, grads), (expected, expected_grads) = (harness.run(f, inputs) for f in (ours, theirs))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_torchs_own_samples():
    samples = list(sample_inputs_scaled_dot_product_attention(None, "cpu", torch.float64, True))
    assert {sample.input.dim() for sample in samples} == {3, 4}
    for sample in samples:
        if sample.kwargs.get("dropout_p", 0) == 0:
            both(
                lambda *qkv, k=sample.kwargs: sdpa(*qkv, **k),
                lambda *qkv, k=sample.kwargs: F.scaled_dot_product_attention(*qkv, **k),
                [sample.input, *sample.args],
            )
        else:
            assert sdpa(sample.input, *sample.args, **sample.kwargs).shape[-2:] == sample.input.shape[-2:]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_equals_torchs(form, is_causal):
    both(
        lambda *x: sdpa(*x, is_causal=is_causal),
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=is_causal),
        leaves(form),
    )


@pytest.mark.parametrize("form", FORMS[:-2])
def test_on_every_device(form, device):
    inputs = leaves(form, torch.float32)
    output, grads = harness.run(sdpa, harness.on(device, inputs))
    wanted, wanted_grads = harness.run(F.scaled_dot_product_attention, inputs)
    torch.testing.assert_close(output.cpu(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([grad.cpu() for grad in grads], wanted_grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "masks"),
    [
        (((3, 8), (6, 8), (6, 8)), [(3, 6), (6,), (3, 1)]),
        (((4, 3, 8), (4, 6, 8), (4, 6, 8)), [(3, 6), (4, 3, 6), (1, 1, 6), (4, 1, 6)]),
        (((2, 4, 3, 8), (4, 6, 8), (1, 6, 8)), [(4, 3, 6), (2, 1, 3, 6), (1, 4, 1, 6)]),
        (((5, 2, 4, 3, 8), (2, 1, 6, 8), (6, 8)), [(3, 6), (4, 1, 6), (2, 4, 3, 6), (5, 1, 1, 3, 6), (1, 1, 4, 3, 6)]),
    ],
)  # fmt: skip
def test_masks(form, masks):
    for shape in masks:
        mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        both(sdpa, F.scaled_dot_product_attention, [*leaves(form), mask])
        boolean = torch.rand(shape) > 0.3
        boolean[..., 0] = True
        both(
            lambda *x, m=boolean: sdpa(*x, m),
            lambda *x, m=boolean: F.scaled_dot_product_attention(*x, m),
            leaves(form),
        )


@pytest.mark.parametrize("form", [((4, 3, 8), (2, 6, 8), (2, 6, 8)), ((3, 2, 4, 3, 8), (2, 2, 6, 8), (1, 2, 6, 8))])
def test_fewer_heads_of_keys(form):
    both(
        lambda *x: sdpa(*x, enable_gqa=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, *(x.repeat_interleave(2, -3) for x in (k, v))),
        leaves(form),
    )


def test_what_there_is_for_each_row_of_the_batch():
    """key_lengths, segment_ids and alibi_slopes have the batch dimensions, of which a call may have any number."""
    q = torch.randn(3, 2, 4, 5, 8)
    lengths = torch.randint(0, 6, (3, 2))
    ids = torch.randint(0, 2, (3, 2, 5)).sort(-1).values
    slopes = torch.rand(3, 2, 4)
    whole = sdpa(q, q, q, key_lengths=lengths, segment_ids=ids, alibi_slopes=slopes)
    for i, j in itertools.product(range(3), range(2)):
        row, one = q[i, j], {"key_lengths": lengths[i, j], "segment_ids": ids[i, j]}
        heads = sdpa(row, row, row, enable_gqa=True, alibi_slopes=slopes[i, j], **one)  # (H, T, D)
        assert torch.equal(heads, whole[i, j])
        for h in range(4):
            head = sdpa(row[h], row[h], row[h], alibi_slopes=slopes[i, j, h, None], **one)  # (T, D)
            assert torch.equal(head, whole[i, j, h])
    batch = sdpa(q[:, 0, 0], q[:, 0, 0], q[:, 0, 0], key_lengths=lengths[:, 0], segment_ids=ids[:, 0])  # (B, T, D)
    assert torch.equal(batch, sdpa(*[q[:, 0, :1]] * 3, key_lengths=lengths[:, 0], segment_ids=ids[:, 0])[:, 0])


@pytest.mark.parametrize("form", [FORMS[i] for i in (1, 2, 7, 8, 10)])
def test_gradcheck(form):
    assert torch.autograd.gradcheck(lambda *x: sdpa(*x, is_causal=True), leaves(form))


@pytest.mark.parametrize("form", FORMS[:-2])
def test_compiles(form):
    harness.assert_compiles(lambda *x: sdpa(*x, is_causal=True), leaves(form, torch.float32))


def test_op_contract():
    inputs = leaves(((2, 1, 3, 8), (1, 4, 6, 8), (2, 4, 6, 8)), torch.float32)
    options = (None, 0.0, False, None, False, None, None, False, False, None, None, None, None, None)
    harness.assert_op_contract(torch.ops.fastllm.scaled_dot_product_attention.default, (*inputs, *options))


def test_four_dimensions_are_not_touched():
    q = torch.randn(2, 4, 5, 8)
    harness.assert_copies_nothing(lambda: sdpa(q, q, q))
    harness.assert_copies_nothing(lambda: sdpa(q, q[:1], q[:, :1]))
    harness.assert_copies_nothing(lambda: sdpa(q[0], q[0], q[0]))


Q = torch.randn(2, 4, 5, 8)
R = torch.randn(3, 2, 4, 5, 8)
LENGTHS = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sdpa(Q[0, 0, 0], Q, Q), r"'query' must have shape \(\.\., T, D\), got \[8\]"),
        (lambda: sdpa(Q, Q, torch.tensor(1.0)), r"'value' must have shape \(\.\., T, D\), got \[\]"),
        (lambda: sdpa(R, R[:2], R), r"must have batch dimensions that broadcast, got \[3, 2\], \[2, 2\], \[3, 2\]"),
        (lambda: sdpa(Q[0], Q[0, :3], Q[0]), r"must have batch dimensions that broadcast, got \[4\], \[3\], \[4\]"),
        (lambda: sdpa(R, R[:, :, :3], R), r"'key' must have the others' 4 heads or 1 .*, got \[6, 3, 5, 8\]"),
        (lambda: sdpa(Q, Q, Q[:, :2]), r"'value' must have the others' 4 heads or 1 .*, got \[2, 2, 5, 8\]"),
        (lambda: sdpa(Q, torch.randn(3, 4, 5, 8), Q), r"'key' must have the others' batch size, 2, or 1, got \[3,"),
        (lambda: sdpa(Q, Q, Q[:, :2], enable_gqa=True), r"'value' must have key's 4 heads, got"),
        (lambda: sdpa(Q, Q[:, :3], Q[:, :3], enable_gqa=True), r"'key' must have a divisor of query's 4 heads, got"),
        (lambda: sdpa(*[Q[0]] * 3, R[0]), r"'attn_mask' must broadcast to \(4, Tq, Tk\), got \[2, 4, 5, 8\]"),
        (lambda: sdpa(*[R] * 3, R[:2, ..., :5]), r"'attn_mask' must broadcast to \(3, 2, H, Tq, Tk\), got \[2, 2, 4,"),
        (lambda: sdpa(*[R] * 3, R[0]), r"'attn_mask' must broadcast to \(B, H, Tq, Tk\) = \[6, 4, 5, 5\], got"),
        (lambda: sdpa(*[R] * 3, key_lengths=LENGTHS), r"'key_lengths' must have shape \(3, 2\), got \[2\]"),
        (lambda: sdpa(*[Q[0, 0]] * 3, key_lengths=LENGTHS), r"'key_lengths' must have shape \(\), got \[2\]"),
        (lambda: sdpa(*[Q[0]] * 3, segment_ids=LENGTHS), r"'segment_ids' must have shape \(4, T\), got \[2\]"),
        (lambda: sdpa(*[R] * 3, alibi_slopes=torch.rand(2, 4)), r"'alibi_slopes' must have shape \(3, 2, H\), got"),
    ],
)
def test_wrong_forms(call, message):
    with pytest.raises(ValueError, match=f"^scaled_dot_product_attention: .*{message}"):
        call()
