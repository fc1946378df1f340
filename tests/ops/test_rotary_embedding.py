"""fastllm.ops.rotary_embedding and rotary_tables."""

import functools
import math

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm import ops
from tests import reference
from tests.ops import harness

LAYOUTS = ["bhtd", "bthd"]
P = 40  # positions in the tables


def tables(pairs):
    """Tables in float64, which kernels of other dtypes round to float32: what they were made of."""
    return tuple(table.double() for table in ops.rotary_tables(P, 2 * pairs))


def compare(x, cos, sin, dtype, device, **options):
    """Values and gradient of the op against the reference's."""

    def ours(x):
        at = options.get("positions", 0)
        moved = {**options, "positions": at.to(device) if isinstance(at, torch.Tensor) else at}
        return ops.rotary_embedding(x, cos.to(device), sin.to(device), **moved)

    def expected(x):
        return reference.rotary_embedding(x, cos, sin, **options)

    harness.assert_matches_reference(ours, expected, [x], dtype, device=device)


def shaped(b, h, t, d, layout):
    return (b, h, t, d) if layout == "bhtd" else (b, t, h, d)


SIZES = [  # B, H, T, D, pairs
    (1, 1, 1, 2, 1),  # one pair: all of it is a partial vector
    (2, 3, 5, 16, 8),  # a whole vector of pairs
    (2, 3, 5, 64, 32),
    (2, 2, 3, 34, 17),  # pairs: vectors and a rest
    (2, 2, 3, 33, 7),  # an odd head, of which less than half turns
    (1, 2, 3, 10, 0),  # nothing turns
    (3, 12, 30, 64, 32),  # more than one task
    (0, 2, 3, 8, 4),  # no sequence
    (2, 2, 0, 8, 4),  # no token
    (2, 2, 3, 0, 0),  # no dimension
]


@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference(size, interleaved, layout, dtype, device):
    *size, pairs = size
    x = torch.randn(shaped(*size, layout), dtype=torch.float64, requires_grad=True)
    compare(x, *tables(pairs), dtype, device, interleaved=interleaved, layout=layout, positions=3)


POSITIONS = {
    "a sequence": torch.tensor([30, 0, 7]),
    "every other": torch.arange(6)[::2],
    "a token": torch.tensor([[5, 1, 39, 0, 5], [7, 7, 8, 0, 1], [2, 3, 4, 5, 6]]),
    "a token, the same everywhere": torch.tensor([[5, 1, 39, 0, 5]]).expand(3, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", POSITIONS)
def test_positions(which, layout, device):
    x = torch.randn(shaped(3, 2, 5, 8, layout), dtype=torch.float64, requires_grad=True)
    compare(x, *tables(4), torch.float32, device, layout=layout, positions=POSITIONS[which])


# None; within and at the end of the 4 heads that a thread on CUDA takes; all.
@pytest.mark.parametrize("num_heads", [0, 3, 4, 6, 7])
@pytest.mark.parametrize("dtype", harness.DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_first_heads_alone(interleaved, layout, dtype, num_heads, device):
    x = torch.randn(shaped(2, 7, 5, 40, layout), dtype=torch.float64, requires_grad=True)
    options = {"interleaved": interleaved, "layout": layout, "positions": POSITIONS["a sequence"][:2]}
    compare(x, *tables(16), dtype, device, num_heads=num_heads, **options)


def test_heads_that_do_not_turn_are_copied(device):
    x = torch.full((1, 2, 3, 8), float("inf"), device=device)
    cos, sin = (table.to(device) for table in ops.rotary_tables(P, 8))
    output = ops.rotary_embedding(x, cos, sin, num_heads=1)
    assert torch.equal(output[:, 1], x[:, 1])
    assert output[:, 0].isnan().any()  # inf - inf


def test_tokens_of_a_cache_turn_as_they_would_together():
    x, (cos, sin) = torch.randn(2, 3, 9, 8), ops.rotary_tables(P, 8)
    together = ops.rotary_embedding(x, cos, sin)
    parts = [ops.rotary_embedding(x[:, :, :4], cos, sin)]
    parts += [ops.rotary_embedding(x[:, :, [t]], cos, sin, positions=torch.tensor([t, t])) for t in range(4, 9)]
    assert torch.equal(torch.cat(parts, 2), together)


def test_products_depend_on_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    cos, sin = tables(8)
    products = [
        (
            ops.rotary_embedding(query, cos, sin, positions=p) * ops.rotary_embedding(key, cos, sin, positions=p + 4)
        ).sum()
        for p in (0, 3, 35)
    ]
    torch.testing.assert_close(torch.stack(products), products[0].expand(3), rtol=1e-6, atol=1e-6)  # float32 tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", ["packed", "transposed", "expanded", "unaligned", "last dimension strided"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_any_strides(view, interleaved, dtype, device):
    base = torch.randn(2, 5, 3, 4, 16, dtype=dtype, device=device)  # (B, T, 3, H, D)
    x = {
        "packed": base.permute(2, 0, 3, 1, 4)[1],
        "transposed": base[0].transpose(1, 2),
        "expanded": base[:, :, 0, :1].expand(2, 5, 4, 16),
        "unaligned": base[:, 0, :, :, 3:],
        "last dimension strided": base[:, 0].transpose(1, 3),
    }[view]
    cos, sin = ops.rotary_tables(P, 16 if x.shape[-1] == 16 else 2)
    actual = ops.rotary_embedding(x, cos.to(device), sin.to(device), interleaved=interleaved, positions=2)
    assert actual.is_contiguous()
    expected = reference.rotary_embedding(x.cpu().double(), cos, sin, interleaved, positions=2)
    torch.testing.assert_close(actual.cpu(), expected.to(dtype))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 4)] * 3),
    pairs=st.integers(0, 20),
    rest=st.integers(0, 20),
    interleaved=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(harness.DTYPES),
)
def test_any_shape(sizes, pairs, rest, interleaved, layout, dtype):
    x = torch.randn(*sizes, 2 * pairs + rest, dtype=torch.float64, requires_grad=True)
    compare(x, *tables(pairs), dtype, harness.CPU, interleaved=interleaved, layout=layout)


@pytest.mark.parametrize("interleaved", [False, True])
def test_heads_are_read_where_they_are(interleaved, device):
    """Query and key of a packed projection, and heads that a cache lays out its own way, turn without a copy."""
    qkv = torch.randn(2, 5, 3, 4, 8, device=device)  # (B, T, 3, H, D)
    cos, sin = (table.to(device) for table in ops.rotary_tables(P, 8))
    positions = torch.tensor([3], device=device).expand(2)
    options = {"interleaved": interleaved, "positions": positions}
    views = {
        "bthd": [*qkv.unbind(2), qkv[:, ::2, 1, 1:3]],
        "bhtd": [*qkv.permute(2, 0, 3, 1, 4), qkv[:, :, 2, :1].transpose(1, 2)],
    }
    for layout, heads in views.items():
        for x in heads:
            expected = ops.rotary_embedding(x.contiguous(), cos, sin, layout=layout, **options)
            kept = x.clone()
            run = functools.partial(ops.rotary_embedding, x, cos, sin, layout=layout, **options)
            harness.assert_copies_nothing(run)
            assert torch.equal(run(), expected)
            assert torch.equal(x, kept)


def test_extremes(device):
    x = torch.tensor([float("inf"), float("nan"), 1e38, 1e-40, 3.0, -0.0, 5.0, 6.0]).reshape(1, 1, 1, 8)
    cos, sin = ops.rotary_tables(P, 8)
    actual = ops.rotary_embedding(x.to(device), cos.to(device), sin.to(device), positions=1).cpu()
    expected = reference.rotary_embedding(x.double(), cos, sin, positions=1).float()
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_first_and_second_order(interleaved):
    x = torch.randn(2, 3, 2, 7, dtype=torch.float64, requires_grad=True)
    cos, sin = tables(2)

    def call(x):
        where = torch.tensor([3, 0])
        return ops.rotary_embedding(x, cos, sin, interleaved=interleaved, positions=where, num_heads=2)

    assert torch.autograd.gradcheck(call, [x])
    assert torch.autograd.gradgradcheck(call, [x])


def test_tables_of_another_dtype():
    x = torch.randn(1, 2, 3, 8).bfloat16()
    cos, sin = ops.rotary_tables(P, 8)
    narrow = ops.rotary_embedding(x, cos.bfloat16(), sin.bfloat16())
    assert torch.equal(narrow, ops.rotary_embedding(x, cos.bfloat16().float(), sin.bfloat16().float()))


def test_deterministic(device, parallelism):
    x, (cos, sin) = torch.randn(2, 4, 30, 40, device=device, requires_grad=True), ops.rotary_tables(P, 32)
    cos, sin = cos.to(device), sin.to(device)
    harness.assert_deterministic(lambda x: ops.rotary_embedding(x, cos, sin), [x], parallelism)


def test_op_contract_and_compile():
    x, (cos, sin) = torch.randn(2, 4, 5, 40, requires_grad=True), ops.rotary_tables(P, 32)
    positions = torch.tensor([1, 4])
    op = torch.ops.fastllm.rotary_embedding.default
    harness.assert_op_contract(op, (x, cos, sin, True, "bthd", 5, None))
    harness.assert_op_contract(op, (x, cos, sin, False, "bhtd", 0, positions, False, 3))
    for where in (3, positions):
        harness.assert_compiles(lambda x, at=where: ops.rotary_embedding(x, cos, sin, positions=at), [x])


def test_a_new_offset_does_not_compile_anew():
    x, (cos, sin) = torch.randn(1, 2, 1, 8), ops.rotary_tables(P, 8)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda at: ops.rotary_embedding(x, cos, sin, positions=at), fullgraph=True, dynamic=True, backend=counter
    )
    for position in (3, 4, 20):
        assert torch.equal(compiled(position), ops.rotary_embedding(x, cos, sin, positions=position))
    assert counter.frame_count == 1


def test_tables():
    cos, sin = ops.rotary_tables(70000, 6, base=100.0)
    assert cos.shape == sin.shape == (70000, 3)
    for position in (0, 1, 69999):  # far positions are right to float32's last bit
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            assert abs(cos[position, pair].item() - math.cos(angle)) < 6e-8
            assert abs(sin[position, pair].item() - math.sin(angle)) < 6e-8


def test_tables_of_given_frequencies():
    frequencies = torch.tensor([1.0, 0.25, 1e-4], dtype=torch.float64, requires_grad=True)
    cos, sin = ops.rotary_tables(70000, 6, frequencies=frequencies, scale=1.5)
    assert cos.dtype == sin.dtype == torch.float32
    assert not cos.requires_grad
    for position in (0, 1, 69999):
        for pair, frequency in enumerate(frequencies.tolist()):
            assert abs(cos[position, pair].item() - 1.5 * math.cos(position * frequency)) < 1.2e-7
            assert abs(sin[position, pair].item() - 1.5 * math.sin(position * frequency)) < 1.2e-7
    theirs = 100.0 ** -(torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    ours, expected = ops.rotary_tables(50, 6, frequencies=theirs), ops.rotary_tables(50, 6, 100.0)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])


X = torch.randn(2, 4, 3, 8)
COS, SIN = ops.rotary_tables(10, 8)


def rotate(x=X, cos=COS, sin=SIN, **options):
    return lambda: ops.rotary_embedding(x, cos, sin, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (rotate(X[0]), ValueError, r"rotary_embedding: 'input' must have shape \(B, H, T, D\), got \[4, 3, 8\]"),
        (rotate(X.long()), TypeError, "'input' must be float32, float64, bfloat16 or float16, got Long"),
        (rotate(layout="tbhd"), ValueError, "'layout' must be 'bhtd' or 'bthd', got 'tbhd'"),
        (
            rotate(X[..., :7]),
            ValueError,
            r"'cos' must have shape \(positions, pairs\) with at most 3 pairs, got \[10, 4\]",
        ),
        (rotate(sin=SIN[:9]), ValueError, r"'sin' must have the shape of 'cos' \(\[10, 4\]\), got \[9, 4\]"),
        (rotate(sin=SIN.double()), TypeError, "'sin' must have the dtype of 'cos'"),
        (rotate(cos=COS.long()), TypeError, "'cos' must be float32"),
        (rotate(cos=COS.clone().requires_grad_()), ValueError, "'cos' must not require a gradient"),
        (rotate(sin=SIN.clone().requires_grad_()), ValueError, "'sin' must not require a gradient"),
        (rotate(positions=8), ValueError, r"'positions' must be in \[0, 7\], so that 3 tokens end in the 10 rows"),
        (rotate(positions=-1), ValueError, r"'positions' must be in \[0, 7\].*got -1"),
        (rotate(positions=torch.tensor([7, 8])), ValueError, r"in \[0, 8\): 'cos' has 10 rows, got 8 in sequence 1"),
        (rotate(positions=torch.tensor([-1, 0])), ValueError, r"got -1 in sequence 0"),
        (rotate(positions=torch.tensor([[0, 1, 2], [3, 10, 5]])), ValueError, r"in \[0, 10\).*got 10 in sequence 1"),
        (rotate(positions=torch.zeros(3).long()), ValueError, r"\(B\) = \[2\] or \(B, T\) = \[2, 3\], got \[3\]"),
        (rotate(positions=torch.zeros(2)), TypeError, "'positions' must be int64, got Float"),
        (rotate(num_heads=5), ValueError, r"'num_heads' must be in \[0, 4\], the number of heads of 'input', got 5"),
        (rotate(num_heads=4, layout="bthd"), ValueError, r"'num_heads' must be in \[0, 3\]"),
        (rotate(num_heads=-1), ValueError, r"'num_heads' must be in \[0, 4\].*got -1"),
        (rotate(num_heads=X), TypeError, "'num_heads' must be an int or None, got a Tensor"),
        (lambda: ops.rotary_tables(-1, 8), ValueError, "'length' must be at least 0, got -1"),
        (lambda: ops.rotary_tables(5, 7), ValueError, "'dim' must be even and at least 0, got 7"),
        (lambda: ops.rotary_tables(5, 8, base=0), ValueError, "'base' must be positive, got 0"),
        (
            lambda: ops.rotary_tables(5, 8, frequencies=torch.ones(5)),
            ValueError,
            r"'frequencies' must have shape \(dim / 2,\) = \[4\], got \[5\]",
        ),
    ],
)
def test_wrong_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
