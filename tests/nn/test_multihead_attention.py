"""fastllm.nn.MultiheadAttention against torch's in float64: every way to make it, every mask, weights and gradients."""

import copy
import pickle

import pytest
import torch

from fastllm import nn, ops
from tests.nn.twins import assert_twins, both, each, no_fast_path

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched")  # torch's, of masks of two dtypes

B, TQ, TK, E, H = 3, 5, 7, 12, 3
# Arguments of the constructor, and which inputs are one tensor: "self" all, "memory" key and value, "apart" none.
KINDS = {
    "self": ({}, "self"),
    "self without bias": ({"bias": False}, "self"),
    "memory": ({}, "memory"),
    "memory without bias": ({"bias": False}, "memory"),
    "apart": ({}, "apart"),
    "other channels": ({"kdim": 8, "vdim": 10}, "apart"),
    "other channels without bias": ({"kdim": 8, "vdim": 10, "bias": False}, "apart"),
    "one of them": ({"kdim": 8, "vdim": 8}, "memory"),
    "bias_kv": ({"add_bias_kv": True}, "self"),
    "zero_attn": ({"add_zero_attn": True}, "memory"),
    "bias_kv and zero_attn": ({"add_bias_kv": True, "add_zero_attn": True}, "apart"),
}
MASKS = [
    "none", "bool", "float", "bool per head", "float per head", "padding", "float padding", "biased padding", "holes",
    "causal", "bool and padding", "float and padding", "bool and float padding", "float and holes",
    "causal and padding",
]  # fmt: skip


def inputs(kind, batch_first=True):
    options, sharing = KINDS[kind]
    kdim, vdim = options.get("kdim", E), options.get("vdim", E)
    if sharing == "self":
        query = key = value = torch.randn(B, TQ, E, dtype=torch.float64)
    else:
        query = torch.randn(B, TQ, E, dtype=torch.float64)
        key = torch.randn(B, TK, kdim, dtype=torch.float64)
        value = key if sharing == "memory" else torch.randn(B, TK, vdim, dtype=torch.float64)
    if batch_first:
        return query, key, value
    return each((query, key, value), lambda x: x.transpose(0, 1).contiguous())


def masks(name, tq, tk):
    """Return what torch's layer takes; each query sees a key at least."""
    hidden = torch.rand(B * H, tq, tk) < 0.4
    hidden[..., 0] = False
    added = torch.randn(B * H, tq, tk, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    padding = torch.arange(tk) >= torch.tensor([[tk], [tk - 2], [3]])
    holes = padding.clone()
    holes[0, 2] = holes[2, 1] = True
    infinite = torch.zeros(B, tk, dtype=torch.float64).masked_fill(padding, float("-inf"))
    causal = torch.ones(tq, tk, dtype=torch.bool).triu(1)
    found = {}
    for part in name.split(" and "):
        found |= {
            "none": {},
            "bool": {"attn_mask": hidden[0]},
            "float": {"attn_mask": added[0]},
            "bool per head": {"attn_mask": hidden},
            "float per head": {"attn_mask": added},
            "padding": {"key_padding_mask": padding},
            "holes": {"key_padding_mask": holes},
            "float padding": {"key_padding_mask": infinite},
            "biased padding": {"key_padding_mask": infinite + torch.randn(B, tk, dtype=torch.float64)},
            "causal": {"attn_mask": causal, "is_causal": True},
        }[part]
    return found


def pair(kind, dtype=torch.float64, **options):
    arguments = {"batch_first": True, **KINDS[kind][0], **options}
    return both("MultiheadAttention", E, H, dtype=dtype, **arguments)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_is_torchs_in_float64(kind, mask, need_weights):
    ours, theirs = pair(kind)
    tensors = inputs(kind)
    options = {**masks(mask, tensors[0].size(1), tensors[1].size(1)), "need_weights": need_weights}
    if ours.bias_k is not None or ours.add_zero_attn:
        # Given the hint, torch forgets that these keys are seen by all queries, if weights are not wanted.
        hint = options.pop("is_causal", False)
        assert torch.equal(ours(*tensors, **options, is_causal=hint)[0], ours(*tensors, **options)[0])
    assert_twins(ours, theirs, tensors, options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["self", "memory", "other channels"])
def test_other_dtypes(kind, dtype):
    ours, theirs = pair(kind, dtype)
    tensors = each(inputs(kind), lambda x: x.to(dtype))
    assert_twins(ours, theirs, tensors, masks("padding", TQ, tensors[1].size(1)))


@pytest.mark.parametrize("kind", ["self", "memory", "other channels", "bias_kv and zero_attn"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_sequence_first(kind, need_weights):
    ours, theirs = pair(kind, batch_first=False)
    tensors = inputs(kind, batch_first=False)
    options = masks("float per head and padding", tensors[0].size(0), tensors[1].size(0))
    assert_twins(ours, theirs, tensors, {**options, "need_weights": need_weights})
    assert ours(*tensors)[0].is_contiguous()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["self", "memory", "bias_kv and zero_attn"])
def test_without_a_batch(kind, batch_first):
    ours, theirs = pair(kind, batch_first=batch_first)
    tensors = each(inputs(kind), lambda x: x[1])
    mask = torch.randn(H, tensors[0].size(0), tensors[1].size(0), dtype=torch.float64)
    padding = torch.arange(tensors[1].size(0)) > 3
    for options in ({}, {"attn_mask": mask}, {"key_padding_mask": padding}, {"average_attn_weights": False}):
        assert_twins(ours, theirs, tensors, options)


@pytest.mark.parametrize("average", [False, True])
def test_weights_of_chosen_heads(average):
    ours, _ = pair("memory")
    tensors, options = inputs("memory"), masks("float per head and padding", TQ, TK)
    output, weights = ours(*tensors, need_weights=[2, 0], average_attn_weights=average, **options)
    alone, all_weights = ours(*tensors, average_attn_weights=False, **options)
    chosen = all_weights[:, [2, 0]]
    torch.testing.assert_close(weights, chosen.mean(1) if average else chosen)
    assert torch.equal(output, alone)


def test_weights_do_not_change_the_output_and_have_no_dropout_in_them():
    ours, _ = pair("self", dropout=0.5)
    x = inputs("self")[0]
    torch.manual_seed(1)
    output, weights = ours(x, x, x)
    torch.manual_seed(1)
    assert torch.equal(ours(x, x, x, need_weights=False)[0], output)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, TQ, dtype=torch.float64))
    torch.testing.assert_close(weights, ours.eval()(x, x, x)[1])


def test_dropout_is_attentions():
    ours, _ = pair("self", dropout=0.3)
    x = inputs("self")[0]
    torch.manual_seed(1)
    output = ours(x, x, x, need_weights=False)[0]
    q, k, v = (ours.in_proj_weight @ x.mT).mT.add(ours.in_proj_bias).view(B, TQ, 3, H, E // H).permute(2, 0, 3, 1, 4)
    torch.manual_seed(1)
    attended = ops.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
    torch.testing.assert_close(output, ours.out_proj(attended.transpose(1, 2).flatten(-2)))
    assert not torch.equal(output, ours.eval()(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("kind", ["self", "memory", "bias_kv and zero_attn"])
def test_empty_batch(kind):
    ours, theirs = pair(kind)
    tensors = each(inputs(kind), lambda x: x[:0])
    padding = torch.zeros(0, tensors[1].size(1), dtype=torch.bool)
    output, weights = ours(*tensors, key_padding_mask=padding)
    assert output.shape == theirs(*tensors)[0].shape
    assert weights.shape == (0, tensors[0].size(1), tensors[1].size(1) + bool(KINDS[kind][0]) * 2)


def test_a_mask_and_causality_hide_together():
    ours, theirs = pair("self")
    x = inputs("self")[0]
    mask = torch.randn(TQ, TQ, dtype=torch.float64)
    causal = torch.full((TQ, TQ), float("-inf")).triu(1)
    expected = theirs(x, x, x, attn_mask=mask + causal)
    for got, wanted in zip(ours(x, x, x, attn_mask=mask, is_causal=True), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_initial_weights_are_torchs():
    for kind in KINDS:
        torch.manual_seed(3)
        ours = nn.MultiheadAttention(E, H, **KINDS[kind][0])
        torch.manual_seed(3)
        theirs = torch.nn.MultiheadAttention(E, H, **KINDS[kind][0])
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_copies():
    ours, _ = pair("memory")
    tensors = inputs("memory")
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(*tensors)[0], ours(*tensors)[0])


def test_autocast():
    ours, theirs = pair("self", torch.float32)
    x = inputs("self")[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        output, weights = ours(x, x, x, is_causal=True)
        assert output.dtype == weights.dtype == torch.bfloat16
    with no_fast_path():
        causal = torch.ones(TQ, TQ, dtype=torch.bool).triu(1)
        expected = theirs(x, x, x, attn_mask=causal)[0]
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mask", ["none", "float and holes", "bool and padding"])
def test_compile_and_export(mask):
    ours, _ = pair("self", torch.float32)
    x = inputs("self")[0].float()
    options = {k: v.float() if v.is_floating_point() else v for k, v in masks(mask, TQ, TQ).items()}
    expected = ours(x, x, x, **options)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(ours, (x, x, x), options).module()
    for function in (compiled, exported):
        for got, wanted in zip(function(x, x, x, **options), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_on_a_gpu_nothing_is_waited_for(gpu):
    ours, _ = pair("memory", torch.float32)
    tensors, padding = each(inputs("memory"), lambda x: x.float()), masks("holes", TQ, TK)["key_padding_mask"]
    expected = ours(*tensors, key_padding_mask=padding, need_weights=False)[0]
    ours.to("cuda:0")
    tensors, padding = each(tensors, lambda x: x.to("cuda:0")), padding.to("cuda:0")
    with gpu.without_waiting():
        output = ours(*tensors, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(output.cpu(), expected)


X = torch.zeros(2, 4, 6)
WRONG = {
    "another rank": (lambda a: a(X[None], X[None], X[None]), ValueError, "'query' must have 3 dimensions, .* got 4"),
    "key's rank": (lambda a: a(X, X[0], X[0]), ValueError, "'key' must have 3 dimensions, .* got 2 and a query of 3"),
    "channels": (lambda a: a(X, X, X[..., :5]), ValueError, r"'value' must have 6 channels, got shape \[2, 4, 5\]"),
    "batch": (lambda a: a(X, X[:1], X[:1]), ValueError, r"'key' must have query's batch of 2 .* got shape \[1, 4, 6\]"),
    "length": (lambda a: a(X, X, X[:, :3]), ValueError, r"'value' must be as long as key .*, got \[2, 3, 6\]"),
    "mask's shape": (
        lambda a: a(X, X, X, attn_mask=torch.zeros(4, 5)),
        ValueError, r"'attn_mask' must have shape \[4, 4\] or \[6, 4, 4\], got \[4, 5\]",
    ),
    "mask's dtype": (
        lambda a: a(X, X, X, attn_mask=torch.zeros(4, 4, dtype=torch.int64)),
        TypeError, "'attn_mask' must be bool or floating, got torch.int64",
    ),
    "padding's shape": (
        lambda a: a(X, X, X, key_padding_mask=torch.zeros(4, 2)),
        ValueError, r"'key_padding_mask' must have shape \[2, 4\], got \[4, 2\]",
    ),
    "padding's rank": (
        lambda a: a(X[0], X[0], X[0], key_padding_mask=torch.zeros(2, 4)),
        ValueError, r"'key_padding_mask' must have shape \(Tk,\), as query has no batch, got \[2, 4\]",
    ),
    "padding's dtype": (
        lambda a: a(X, X, X, key_padding_mask=torch.ones(2, 4, dtype=torch.uint8)),
        TypeError, "'key_padding_mask' must be bool or floating, got torch.uint8",
    ),
    "heads": (lambda a: a(X, X, X, need_weights=[0, 3]), ValueError, r"numbers of heads in \[0, 3\), got \[0, 3\]"),
    "nested": (
        lambda a: a(*[torch.nested.nested_tensor([X[0], X[1]])] * 3),
        NotImplementedError, "'query' is a nested tensor: pad it",
    ),
    "dtype": (lambda a: a(X.double(), X.double(), X.double()), TypeError, "must have the dtype of 'input'"),
    "division": (
        lambda a: nn.MultiheadAttention(6, 4), ValueError, r"'embed_dim' must be a multiple of num_heads \(4\), got 6",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call(nn.MultiheadAttention(6, 3, batch_first=True))
