"""Tensors on several devices: every op names the one that is elsewhere, and never answers with uninitialised memory."""

import inspect

import pytest
import torch

from fastllm import ops

Q = torch.randn(2, 4, 3, 8)
STATE = torch.tensor([1, 2])

# Every tensor argument of every op, all given.
CALLS = {
    ops.attention_packed: {
        "qkv": torch.randn(2, 3, 3, 4, 8), "attn_mask": torch.randn(3, 3), "key_lengths": torch.tensor([3, 2]),
        "segment_ids": torch.zeros(2, 3, dtype=torch.int64), "alibi_slopes": torch.ones(4), "rng_state": STATE,
    },
    ops.bias_gelu: {"input": torch.randn(2, 3), "bias": torch.randn(3)},
    ops.bias_relu: {"input": torch.randn(2, 3), "bias": torch.randn(3), "rng_state": STATE},
    ops.cross_entropy: {"input": torch.randn(2, 5), "target": torch.tensor([1, 2]), "weight": torch.ones(5)},
    ops.decode_attention: {
        "query": Q, "k_cache": Q, "v_cache": Q, "lengths": torch.tensor([3, 3]), "alibi_slopes": torch.ones(4),
    },
    ops.dropout: {"input": torch.randn(2, 3), "rng_state": STATE},
    ops.dropout_add: {
        "input": torch.randn(2, 3), "residual": torch.randn(2, 3), "bias": torch.randn(3), "rng_state": STATE,
    },
    ops.dropout_add_layer_norm: {
        "input": torch.randn(2, 3), "residual": torch.randn(2, 3), "weight": torch.ones(3), "bias": torch.ones(3),
        "input_bias": torch.ones(3), "rng_state": STATE,
    },
    ops.dropout_add_rms_norm: {
        "input": torch.randn(2, 3), "residual": torch.randn(2, 3), "weight": torch.ones(3), "input_bias": torch.ones(3),
        "rng_state": STATE,
    },
    ops.embedding: {"input": torch.tensor([[1, 2]]), "weight": torch.randn(5, 3), "position_weight": torch.randn(2, 3)},
    ops.gelu: {"input": torch.randn(2, 3)},
    ops.layer_norm: {"input": torch.randn(2, 3), "weight": torch.ones(3), "bias": torch.ones(3)},
    ops.linear: {"input": torch.randn(2, 3), "weight": torch.randn(4, 3), "bias": torch.randn(4)},
    ops.linear_cross_entropy: {
        "input": torch.randn(2, 3), "linear_weight": torch.randn(5, 3), "target": torch.tensor([1, 2]),
        "linear_bias": torch.ones(5),
    },
    ops.rms_norm: {"input": torch.randn(2, 3), "weight": torch.ones(3)},
    ops.rotary_embedding: {
        "input": Q, "cos": torch.ones(9, 4), "sin": torch.ones(9, 4), "positions": torch.tensor([3, 2]),
    },
    ops.scaled_dot_product_attention: {
        "query": Q, "key": Q, "value": Q, "attn_mask": torch.randn(3, 3), "key_lengths": torch.tensor([3, 2]),
        "segment_ids": torch.zeros(2, 3, dtype=torch.int64), "alibi_slopes": torch.ones(4), "rng_state": STATE,
    },
    ops.softmax: {"input": torch.randn(2, 3)},
    ops.swiglu: {"input": torch.randn(2, 3), "up": torch.randn(2, 3)},
}  # fmt: skip
OTHERS = {
    ops.layer_norm: {"normalized_shape": (3,)},
    ops.rms_norm: {"normalized_shape": (3,)},
    ops.softmax: {"dim": -1},
    ops.attention_packed: {"dropout_p": 0.5},
    ops.bias_relu: {"p": 0.5},
    ops.scaled_dot_product_attention: {"dropout_p": 0.5},
}
# Arguments that make an op a composition of others, which have tests of their own.
COMPOSING = {ops.linear_cross_entropy: {"weight"}}


def test_every_tensor_argument_of_every_op_is_here():
    """So that an op or an argument that is added later is tested too."""
    functions = {getattr(ops, name) for name in ops.__all__} - {ops.report, ops.build_info, ops.rotary_tables}
    assert functions == set(CALLS)
    for function, tensors in CALLS.items():
        hints = inspect.signature(function).parameters
        assert {name for name, p in hints.items() if "Tensor" in str(p.annotation)} == set(tensors) | COMPOSING.get(
            function, set()
        ), function


@pytest.mark.parametrize(
    ("function", "name"),
    [(f, name) for f, tensors in CALLS.items() for name in tensors],
    ids=lambda x: getattr(x, "__name__", x),
)
@pytest.mark.parametrize("moved_to", ["meta", "cpu"])
def test_one_tensor_elsewhere(function, name, moved_to):
    home = "cpu" if moved_to == "meta" else "meta"
    tensors = {key: value.to(home) for key, value in CALLS[function].items()}
    others = OTHERS.get(function, {})
    output = function(**tensors, **others)  # all in one place: no complaint
    assert (output[0] if isinstance(output, tuple) else output).device.type == home
    if len(tensors) == 1:
        return
    tensors[name] = CALLS[function][name].to(moved_to)
    first = next(iter(tensors))
    # The first tensor says where the others should be: if it is the one elsewhere, the second is named.
    named = name if name != first else r"\w+"
    with pytest.raises(TypeError, match=rf"'{named}' must be on the device of '\w+' \(\w+\), got \w+"):
        function(**tensors, **others)


@pytest.mark.skipif(ops.build_info()["cuda"] == "yes", reason="the build has CUDA kernels")
def test_cuda_tensors_given_to_a_cpu_build():
    """No CUDA tensor exists here, so the CUDA kernel is called with another."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(
        NotImplementedError, match=r"fastllm.gelu: got CUDA tensors, .* no CUDA kernels \(.*\): install"
    ):
        torch.ops.fastllm.gelu.default.redispatch(cuda, Q, "none")
    assert all(row["kernel"] == "none" for row in ops.report() if row["device"] == "cuda")
