"""What forward keeps for backward: what the wanted gradients need, for every op and whatever requires a gradient."""

import itertools

import pytest
import torch

from fastllm import ops
from tests.ops import harness
from tests.ops.test_devices import CALLS, OTHERS, STATE

Q, K, V = (torch.randn(2, 4, t, 8) for t in (3, 5, 5))
LOSS = {"input": torch.randn(6, 3), "linear_weight": torch.randn(5, 3), "target": torch.tensor([0, 1, 2, 3, 4, -100])}
LOSS["linear_bias"] = torch.randn(5)
LOGITS = set(LOSS)  # a gradient of theirs needs all that they are made of
ATTENTION = {"query", "key", "value", "attn_mask", "output", "(2, 4, 3, 2)"}
PACKED = {"qkv", "attn_mask", "output", "(2, 4, 3, 2)"}
SUMMED = {"output 1", "(2,)", "weight"}  # of a fused norm: what the gradient of the sum needs

# What each argument's gradient needs: arguments by their names, outputs, and the shapes of what forward made besides.
# The case is an op's call in test_devices.py unless it is given here.
NEEDS = {
    # One pass makes all gradients of attention.
    "attention_packed": (ops.attention_packed, {"qkv": PACKED, "attn_mask": PACKED}),
    "attention_packed with num_heads": (
        ops.attention_packed, {"qkv": PACKED, "attn_mask": PACKED},
        {"qkv": torch.randn(2, 3, 8, 8), "attn_mask": torch.randn(3, 3), "rng_state": STATE},
        {"dropout_p": 0.5, "num_heads": 4},
    ),
    "bias_gelu": (ops.bias_gelu, {"input": {"input", "bias"}, "bias": {"input", "bias"}}),
    "bias_relu": (ops.bias_relu, {"input": {"output"}, "bias": {"output"}}),
    "cross_entropy": (ops.cross_entropy, {"input": {"input", "target", "weight", "(2, 2)"}}),
    "dropout": (ops.dropout, {"input": {"rng_state"}}),
    "dropout_add": (ops.dropout_add, {"input": {"rng_state"}, "residual": set(), "bias": {"rng_state"}}),
    "dropout_add_layer_norm": (ops.dropout_add_layer_norm, {
        "input": SUMMED | {"rng_state"}, "residual": SUMMED, "weight": SUMMED - {"weight"}, "bias": set(),
        "input_bias": SUMMED | {"rng_state"},
    }),
    "dropout_add_rms_norm": (ops.dropout_add_rms_norm, {
        "input": SUMMED | {"rng_state"}, "residual": SUMMED, "weight": SUMMED - {"weight"},
        "input_bias": SUMMED | {"rng_state"},
    }),
    "embedding": (ops.embedding, {"weight": {"input"}, "position_weight": set()}),
    "gelu": (ops.gelu, {"input": {"input"}}),
    "layer_norm": (ops.layer_norm, {"input": {"input", "weight", "(2,)"}, "weight": {"input", "(2,)"}, "bias": set()}),
    "linear": (ops.linear, {"input": {"weight"}, "weight": {"input"}, "bias": set()}),
    # The gradients themselves, made in forward.
    "linear_cross_entropy": (
        ops.linear_cross_entropy, {"input": {"(6, 3)"}, "linear_weight": {"(5, 3)"}, "linear_bias": {"(5,)"}}, LOSS, {},
    ),
    "linear_cross_entropy of each row": (
        ops.linear_cross_entropy, {"input": LOGITS, "linear_weight": LOGITS, "linear_bias": LOGITS}, LOSS,
        {"reduction": "none"},
    ),
    "rms_norm": (ops.rms_norm, {"input": {"input", "weight", "(2,)"}, "weight": {"input", "(2,)"}}),
    "rotary_embedding": (ops.rotary_embedding, {"input": {"cos", "sin", "positions"}}),
    "scaled_dot_product_attention": (
        ops.scaled_dot_product_attention, dict.fromkeys(("query", "key", "value", "attn_mask"), ATTENTION),
        {"query": Q, "key": K, "value": V, "attn_mask": torch.randn(3, 5), "rng_state": STATE}, {"dropout_p": 0.5},
    ),
    "softmax": (ops.softmax, {"input": {"output"}}),
    "swiglu": (ops.swiglu, {"input": {"input", "up"}, "up": {"input"}}),
    "swiglu packed": (ops.swiglu, {"input": {"input"}}, {"input": torch.randn(2, 6)}, {}),
}  # fmt: skip
FOR_INFERENCE = {ops.decode_attention}


def case(name):
    """Return (function, what each gradient needs, tensors, other arguments)."""
    function, needs, *given = NEEDS[name]
    tensors, others = given or (CALLS[function], OTHERS.get(function, {}))
    return function, needs, tensors, others


def cases():
    for name in NEEDS:
        needs = case(name)[1]
        for count in range(len(needs) + 1):
            for trained in itertools.combinations(needs, count):
                yield pytest.param(name, trained, id=f"{name}: {', '.join(trained) or 'nothing'}")


def run(name, trained, dtype=torch.float32):
    """Return (inputs, outputs that are differentiable, tensors that were saved) of a call."""
    function, _, tensors, others = case(name)
    inputs = {}
    for key, value in tensors.items():
        copied = value.detach().clone()
        inputs[key] = copied.to(dtype).requires_grad_(key in trained) if value.is_floating_point() else copied
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = function(**inputs, **others)
    return inputs, outputs if isinstance(outputs, tuple) else (outputs,), saved


def name_of(tensor, inputs, outputs):
    names = {value.data_ptr(): name for name, value in inputs.items()}
    if len(outputs) == 1:
        names[outputs[0].data_ptr()] = "output"
    else:
        names |= {value.data_ptr(): f"output {i}" for i, value in enumerate(outputs)}
    return names.get(tensor.data_ptr(), str(tuple(tensor.shape)))


def test_every_op_is_here():
    assert {entry[0] for entry in NEEDS.values()} | FOR_INFERENCE == set(CALLS)


@pytest.mark.parametrize(("name", "trained"), list(cases()))
def test_what_is_saved(name, trained):
    needs = case(name)[1]
    inputs, outputs, saved = run(name, trained)
    expected = set().union(*(needs[argument] for argument in trained))
    assert {name_of(t, inputs, outputs) for t in saved} == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # products of fastllm's, and of torch's
@pytest.mark.parametrize(("name", "trained"), list(cases()))
def test_gradients_are_those_of_all_together(name, trained, dtype):
    """Whatever is frozen, and although everything that was not saved is overwritten before backward."""
    if not trained:
        return
    torch.manual_seed(0)
    everything = tuple(case(name)[1])
    inputs, outputs, _ = run(name, everything, dtype)
    upstream = [torch.randn_like(output) for output in outputs]
    expected = dict(
        zip(everything, torch.autograd.grad(outputs, [inputs[k] for k in everything], upstream), strict=True)
    )
    inputs, outputs, saved = run(name, trained, dtype)
    kept = {tensor.data_ptr() for tensor in saved}
    with torch.no_grad():
        for tensor in (*inputs.values(), *outputs):
            # Attention keeps lengths, segments and slopes beside the graph.
            if tensor.data_ptr() not in kept and tensor.is_floating_point() and "attention" not in name:
                tensor.fill_(torch.nan)
    differentiable = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    gradients = torch.autograd.grad(
        [o for o, _ in differentiable], [inputs[k] for k in trained], [g for _, g in differentiable]
    )
    for argument, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[argument], rtol=1.3e-6, atol=1e-5)


GRAD, ROWS, WEIGHT = torch.randn(2, 4), torch.randn(2, 3), torch.randn(4, 3)
FROZEN = (ROWS, WEIGHT, torch.tensor([1, 2]), torch.randn(4), -100)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("linear_backward", (GRAD, None, WEIGHT, False)),
        ("linear_backward", (GRAD, ROWS, None, True)),
        ("linear_backward", (GRAD, None, None, True)),
        ("embedding_backward", (GRAD, torch.tensor([1, 0]), 5, -1)),
        ("embedding_position_backward", (GRAD, 5, 1)),
        *(("linear_cross_entropy_with_gradients", (*FROZEN, "mean", 0.0, False, *need))
          for need in ((True, False, False), (False, True, False), (False, False, True))),
        *(("linear_cross_entropy_backward", (ROWS[:, 0], *FROZEN, 0.0, *need))
          for need in ((True, False, False), (False, True, True))),
    ],
)  # fmt: skip
def test_backward_of_what_is_partly_frozen_keeps_the_contract(op, arguments):
    harness.assert_op_contract(getattr(torch.ops.fastllm, op).default, arguments)


@pytest.mark.parametrize("trained", [("input",), ("weight",), ("bias",), ("input", "bias")])
@pytest.mark.parametrize("name", ["linear", "layer_norm", "dropout_add_layer_norm"])
def test_what_is_partly_frozen_compiles(name, trained):
    function, _, tensors, others = case(name)

    def call(*values):
        output = function(**dict(zip(tensors, values, strict=True)), **others)
        return output[0] if isinstance(output, tuple) else output

    inputs = [v.detach().clone().requires_grad_(k in trained) for k, v in tensors.items()]
    harness.assert_compiles(call, inputs)
