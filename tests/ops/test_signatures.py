"""Every op against the function of torch.nn.functional that it follows: names, order and defaults to the letter.

What torch has and the op does not is taken at torch's default and refused by name at any other value.
"""

import inspect

import pytest
import torch
from torch.nn import functional as F

from fastllm import ops

EMPTY, KEYWORD_ONLY = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
WITHOUT_A_TWIN = {
    "attention_packed", "bias_gelu", "bias_relu", "build_info", "decode_attention", "dropout_add",
    "dropout_add_layer_norm", "dropout_add_rms_norm", "report", "rotary_embedding", "rotary_tables", "swiglu",
}  # fmt: skip
# Torch's functions in C++ have no signature that inspect reads: as documented, (name, default) each.
IN_CPP = {
    "gelu": [("input", EMPTY), ("approximate", "none")],
    "linear": [("input", EMPTY), ("weight", EMPTY), ("bias", None)],
    "scaled_dot_product_attention": [
        ("query", EMPTY), ("key", EMPTY), ("value", EMPTY), ("attn_mask", None), ("dropout_p", 0.0),
        ("is_causal", False), ("scale", None), ("enable_gqa", False),
    ],
}  # fmt: skip
# Torch guesses a dimension for softmax without dim, which is deprecated; here dim must be said.
OTHER_DEFAULTS = {("softmax", "dim"): EMPTY}


def theirs(name):
    """Return torch's parameters as (name, default, whether it has a position); those behind a private one have none."""
    if name in IN_CPP:
        return [(*parameter, True) for parameter in IN_CPP[name]]
    positions, result = True, []
    for parameter in inspect.signature(getattr(F, name)).parameters.values():
        positions = positions and parameter.kind is not KEYWORD_ONLY and not parameter.name.startswith("_")
        if not parameter.name.startswith("_"):
            result.append((parameter.name, parameter.default, positions))
    return result


def has_twin(name):
    return name in IN_CPP or hasattr(F, name)  # torch 2.11 has no linear_cross_entropy


TWINS = [name for name in sorted(set(ops.__all__) - WITHOUT_A_TWIN) if has_twin(name)]


def test_every_op_is_here():
    assert {name for name in ops.__all__ if hasattr(F, name)} <= set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_names_order_and_defaults_are_torchs(name):
    ours = inspect.signature(getattr(ops, name)).parameters
    wanted = [(n, OTHER_DEFAULTS.get((name, n), default)) for n, default, _ in theirs(name)]
    assert [(n, ours[n].default) for n, _ in wanted] == wanted
    positional = [p.name for p in ours.values() if p.kind is not KEYWORD_ONLY]
    assert positional == [n for n, _, has_position in theirs(name) if has_position]


X, T, TABLE = torch.randn(2, 3), torch.tensor([0, 1]), torch.randn(5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.cross_entropy(X, T, None, True), "cross_entropy: 'size_average' must be None, got bool True"),
        (lambda: ops.cross_entropy(X, T, reduce=False), "cross_entropy: 'reduce' must be None, got bool False"),
        (lambda: ops.dropout(X, 0.5, True, True), "dropout: 'inplace' must be False, got bool True"),
        (lambda: ops.embedding(T, TABLE, None, 1.0), "embedding: 'max_norm' must be None, got float 1.0"),
        (lambda: ops.embedding(T, TABLE, max_norm=0.0), "embedding: 'max_norm' must be None, got float 0.0"),
        (lambda: ops.embedding(T, TABLE, norm_type=1.0), "embedding: 'norm_type' must be 2.0, got float 1.0"),
        (
            lambda: ops.embedding(T, TABLE, scale_grad_by_freq=True),
            "embedding: 'scale_grad_by_freq' must be False, got bool True",
        ),
        (lambda: ops.embedding(T, TABLE, sparse=True), "embedding: 'sparse' must be False, got bool True"),
        (
            lambda: ops.linear_cross_entropy(X, TABLE, T, options="x"),
            "linear_cross_entropy: 'options' must be None, got str 'x'",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        call()


def test_softmax_without_a_dimension():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'dim'"):
        ops.softmax(X)
    with pytest.raises(TypeError, match="softmax: 'dim' must be an int, got None"):
        ops.softmax(X, None)


def test_positions_of_torchs_arguments():
    target = torch.tensor([0, 2])
    arguments = (X, target, torch.ones(3), None, 2, None, "sum", 0.1)
    torch.testing.assert_close(ops.cross_entropy(*arguments), F.cross_entropy(*arguments))
    for ignore_index in (None, 2):
        ours = ops.linear_cross_entropy(X, TABLE, target, linear_bias=torch.ones(5), ignore_index=ignore_index)
        logits = F.linear(X, TABLE, torch.ones(5))
        expected = F.cross_entropy(logits, target, ignore_index=-100 if ignore_index is None else ignore_index)
        torch.testing.assert_close(ours, expected)
