"""Arguments of a wrong type: every op names the argument, what it must be and what was given."""

import inspect

import pytest
import torch

from fastllm import ops
from tests.ops.test_devices import CALLS, OTHERS

# Values, and the annotations that they are right for.
VALUES = {
    "a str": ("wrong", ("str",)),
    "a list": ([0.5], ()),
    "a dict": ({}, ()),
    "None": (None, ("None", "bool")),
    "a tensor": (torch.zeros(2, 3, 5), ("Tensor",)),
    "a float": (1.5, ("float", "bool")),
}
# What an op takes although its annotation is narrower: any truth value, and nothing to add to.
LENIENT = {("a str", "training"), ("a list", "training"), ("a dict", "training"), ("None", "residual")}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_every_argument_of_every_op(function):
    right = {**CALLS[function], **OTHERS.get(function, {})}
    function(**right)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = getattr(parameter.annotation, "__name__", str(parameter.annotation))
        for what, (value, fitting) in VALUES.items():
            if any(word in annotation for word in fitting) or (what, name) in LENIENT:
                continue
            with pytest.raises((TypeError, ValueError), match=f"^{function.__name__}: '{name}' must .*, got"):
                function(**{**right, name: value})
                pytest.fail(f"{function.__name__}: {what} for '{name}' is taken")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.gelu("x"), "gelu: 'input' must be a Tensor, got str 'x'"),
        (lambda: ops.gelu(None), "gelu: 'input' must be a Tensor, got None"),
        (lambda: ops.rms_norm([1.0], (1,)), "rms_norm: 'input' must be a Tensor, got list [1.0]"),
        (
            lambda: ops.dropout(torch.zeros(2), torch.zeros(2)),
            "dropout: 'p' must be a float, got a Tensor of shape [2]",
        ),
        (
            lambda: ops.linear(torch.zeros(2), torch.zeros(2, 2), bias=1.0),
            "linear: 'bias' must be a Tensor or None, got float 1.0",
        ),
        (
            lambda: ops.layer_norm(torch.zeros(2), 2),
            "layer_norm: 'normalized_shape' must be a sequence of ints, got int 2",
        ),
        (
            lambda: ops.softmax(torch.zeros(2), 0, dtype="x"),
            "softmax: 'dtype' must be a torch.dtype or None, got str 'x'",
        ),
    ],
)
def test_sentences(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == message


def test_other_errors_stay_what_they_are():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'input'"):
        ops.gelu()
    with pytest.raises(TypeError, match=r"^gelu: 'input' must be float32, .* got Long"):
        ops.gelu(torch.zeros(2, dtype=torch.int64))


def test_what_torch_takes_for_a_number_is_one():
    x = torch.ones(2)
    for p in (0, False, torch.tensor(0.0), torch.tensor([0.0])):
        assert torch.equal(ops.dropout(x, p), x)
