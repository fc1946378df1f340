"""Second derivatives are refused by name, but for ops whose gradient has one: test_higher_order.py has those."""

import pytest
import torch

from fastllm import ops
from tests.ops.test_devices import CALLS, OTHERS

# No gradient at all; a gradient that has gradients itself.
WITHOUT = {ops.decode_attention}
ANY_ORDER = {
    ops.bias_gelu, ops.bias_relu, ops.cross_entropy, ops.gelu, ops.layer_norm, ops.linear, ops.rms_norm,
    ops.rotary_embedding, ops.softmax, ops.swiglu,
}  # fmt: skip
CASES = [(f, OTHERS.get(f, {})) for f in CALLS if f not in WITHOUT | ANY_ORDER]
CASES += [(ops.linear_cross_entropy, {"reduction": reduction}) for reduction in ("sum", "none")]
CONSTANTS = {"alibi_slopes"}  # they may not require a gradient
REFUSING = {ops.dropout: "dropout_add"}  # what stands for an op of another name


def differentiable(function):
    tensors = dict(CALLS[function])
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in CONSTANTS:
            tensors[name] = tensor.double().requires_grad_()
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return tensors, leaves


@pytest.mark.parametrize(("function", "others"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_is_refused_by_name(function, others):
    tensors, leaves = differentiable(function)
    output = function(**tensors, **others)
    output = output[0] if isinstance(output, tuple) else output
    grad_output = torch.randn_like(output).requires_grad_()
    grads = torch.autograd.grad(output, leaves, grad_output, create_graph=True)
    message = rf"fastllm\.{REFUSING.get(function, function.__name__)}: double backward is not implemented"
    for grad in grads:
        for source in [*leaves, grad_output]:  # whatever is asked for, no second derivative is silently missing
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(grad.sum(), source, retain_graph=True)
    with pytest.raises(RuntimeError, match=message):
        sum(grad.square().sum() for grad in grads).backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_of_a_loss_whose_gradient_comes_without_a_graph_of_its_own(reduction):
    """A gradient penalty, as it is written: the incoming gradient is a constant."""
    tensors, leaves = differentiable(ops.linear_cross_entropy)
    loss = ops.linear_cross_entropy(**tensors, reduction=reduction).sum()
    grads = torch.autograd.grad(loss, leaves, create_graph=True)
    assert all(grad.requires_grad for grad in grads)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: double backward is not implemented"):
        torch.autograd.grad(sum(grad.norm() for grad in grads), leaves)


def test_gradients_are_the_same_with_a_graph_of_them():
    for function, others in CASES:
        tensors, leaves = differentiable(function)
        output = function(**tensors, **others)
        output = (output[0] if isinstance(output, tuple) else output).sum()
        plain = torch.autograd.grad(output, leaves, retain_graph=True)
        with_graph = torch.autograd.grad(output, leaves, create_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(plain, with_graph, strict=True))
