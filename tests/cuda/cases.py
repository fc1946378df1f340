"""Calls of every op that has a CUDA kernel: what the tests of streams, graphs, devices and launches run over.

An op's first case is its entry in tests/ops/test_devices.py. The others take its other kernels and what torch does
between them: another way of the launcher, a conversion, a reduction. A test sees to it that all kernels are taken.
"""

from dataclasses import dataclass, field

import pytest
import torch

from fastllm import ops
from tests.ops.test_devices import CALLS, OTHERS, STATE

FOR_INFERENCE = {ops.decode_attention}  # which has no gradient
CONSTANTS = {"cos", "sin", "alibi_slopes"}  # that want no gradient
WITH_CONSTANT_WEIGHT = {ops.cross_entropy}


@dataclass
class Case:
    function: object
    tensors: dict
    others: dict = field(default_factory=dict)
    name: str = ""

    @property
    def id(self):
        return f"{self.function.__name__} {self.name}".strip()

    def inputs_on(self, device):
        """Return new tensors there; the floating ones want a gradient."""
        made = {name: value.detach().clone().to(device) for name, value in self.tensors.items()}
        trained = set() if self.function in FOR_INFERENCE else {k for k, v in made.items() if v.is_floating_point()}
        constants = CONSTANTS | ({"weight"} if self.function in WITH_CONSTANT_WEIGHT else set())
        return {name: value.requires_grad_(name in trained - constants) for name, value in made.items()}

    def both_ways(self, tensors, function=None):
        """Return the first output and the gradients of its square."""
        output = (function or self.function)(**tensors, **self.others)
        output = output[0] if isinstance(output, tuple) else output
        leaves = [value for value in tensors.values() if value.requires_grad]
        gradients = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True) if leaves else ()
        return [output.detach(), *gradients]


def change(tensors):
    """Put other contents into a case's tensors, all of them."""
    with torch.no_grad():
        for name, value in tensors.items():
            if value.is_floating_point():
                value.mul_(-0.5)
            elif name == "rng_state":
                value.add_(1)
            else:
                value.copy_(value.flip(-1))


def rows(count, cols, dtype=torch.float32):
    return torch.randn(count, cols).to(dtype)


LOSS = {"input": rows(6, 40), "target": torch.tensor([1, 39, -100, 3, 7, 20]), "weight": torch.rand(40)}
PRODUCT = {"input": rows(6, 8), "linear_weight": rows(40, 8), "target": LOSS["target"], "linear_bias": torch.randn(40)}
CASES = [
    *(Case(function, CALLS[function], OTHERS.get(function, {})) for function in CALLS),
    Case(ops.attention_packed, {"qkv": torch.randn(2, 3, 8, 8)}, {"num_heads": 4}, "of unequal heads"),
    Case(ops.bias_gelu, {"input": rows(300, 9), "bias": torch.randn(9)}, {"approximate": "tanh"}, "of many rows"),
    Case(ops.bias_relu, {"input": rows(300, 9), "bias": torch.randn(9)}, {}, "of many rows"),
    Case(ops.cross_entropy, LOSS, {"reduction": "sum", "label_smoothing": 0.1}, "summed and smoothed"),
    Case(ops.cross_entropy, LOSS, {"reduction": "none"}, "of each row"),
    Case(ops.dropout_add, {"input": rows(300, 9), "residual": rows(300, 9), "bias": torch.randn(9), "rng_state": STATE},
         {"p": 0.3}, "of many rows"),
    Case(ops.dropout_add_layer_norm, {"input": rows(2, 5000), "residual": rows(2, 5000), "weight": torch.rand(5000),
         "bias": torch.randn(5000), "input_bias": torch.randn(5000), "rng_state": STATE}, {}, "of long rows"),
    Case(ops.dropout_add_rms_norm, {"input": rows(2, 5000), "residual": rows(2, 5000), "weight": torch.rand(5000),
         "input_bias": torch.randn(5000), "rng_state": STATE}, {}, "of long rows"),
    Case(ops.embedding, {"input": torch.randint(0, 7, (3, 50)), "weight": rows(7, 5)}, {"padding_idx": 3}, "padded"),
    Case(ops.layer_norm, {"input": rows(3, 16, torch.bfloat16), "weight": torch.rand(16).half(),
         "bias": torch.rand(16)}, {"normalized_shape": (16,)}, "with parameters of other dtypes"),
    Case(ops.layer_norm, {"input": rows(2, 30_000), "weight": torch.rand(30_000), "bias": torch.rand(30_000)},
         {"normalized_shape": (30_000,)}, "of rows whose sums fill shared memory"),
    Case(ops.layer_norm, {"input": rows(9, 3).t(), "weight": torch.ones(9)}, {"normalized_shape": (9,)}, "transposed"),
    Case(ops.linear_cross_entropy, PRODUCT, {"reduction": "none", "label_smoothing": 0.1}, "of each row"),
    Case(ops.linear_cross_entropy, {k: v.half() if v.is_floating_point() else v for k, v in PRODUCT.items()}, {},
         "in float16"),
    Case(ops.linear_cross_entropy, {**PRODUCT, "input": rows(2100, 8), "target": torch.randint(0, 40, (2100,))},
         {}, "in two chunks"),
    Case(ops.rotary_embedding, {"input": torch.randn(2, 3, 4, 8), "cos": torch.randn(9, 2).double(),
         "sin": torch.randn(9, 2).double()}, {"layout": "bthd", "interleaved": True, "positions": 2}, "interleaved"),
    Case(ops.rotary_embedding, {"input": torch.randn(2, 3, 7, 8), "cos": torch.randn(9, 4), "sin": torch.randn(9, 4)},
         {"layout": "bthd", "num_heads": 5}, "of the first heads"),
    Case(ops.softmax, {"input": rows(40, 3)}, {"dim": 0}, "over columns"),
    Case(ops.softmax, {"input": rows(2, 5000, torch.bfloat16)}, {"dim": -1}, "of long rows"),
    Case(ops.softmax, {"input": rows(2, 33_000)}, {"dim": -1}, "of few rows, in pieces"),
    Case(ops.swiglu, {"input": rows(3, 10)}, {}, "packed"),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
