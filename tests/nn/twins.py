"""A module of torch.nn and ours with the same weights, and whether they do the same."""

from contextlib import contextmanager

import torch

from fastllm import nn

TOLERANCE = {  # rtol, atol
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (2e-2, 3e-2),
    torch.float16: (3e-3, 4e-3),
}


@contextmanager
def no_fast_path():
    """Have torch take the path that it also trains on."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(was)


def both(name, *arguments, **options):
    """Return ours and torch's, every parameter random."""
    theirs = getattr(torch.nn, name)(*arguments, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = getattr(nn, name)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def each(tensors, function):
    """Return function of each tensor; one that is there twice stays one."""
    results = {id(x): function(x) for x in tensors}
    return tuple(results[id(x)] for x in tensors)


def gradients(module, tensors, options):
    """Return the outputs of a module and the gradients of tensors and parameters."""
    leaves = each(tensors, lambda x: x.clone().requires_grad_())
    with no_fast_path():
        outputs = module(*leaves, **options)
    outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    return outputs, [x.grad for x in leaves], {name: p.grad for name, p in module.named_parameters()}


def assert_twins(ours, theirs, tensors, options):
    """Compare outputs and all gradients."""
    rtol, atol = TOLERANCE[tensors[0].dtype]
    got, expected = gradients(ours, tensors, options), gradients(theirs, tensors, options)
    for module in (ours, theirs):
        module.zero_grad()
    for (name, a), (_, b) in zip(_named(got), _named(expected), strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            scale = max(1.0, b.detach().abs().max().item()) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol * scale, msg=f"{name}: {a} is not {b}")


def assert_same_curves(ours, theirs, loss, steps=20):
    """Train both with AdamW: loss(model) must fall, along the same curve."""
    curves = []
    for model in (ours, theirs):
        optimizer, curve = torch.optim.AdamW(model.parameters(), 1e-3), []
        for _ in range(steps):
            value = loss(model)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            curve.append(value.detach())
        curves.append(torch.stack(curve))
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-4, atol=1e-5)
    assert curves[1][-1] < curves[1][0]


def _named(result):
    outputs, of_inputs, of_parameters = result
    return [
        *((f"output {i}", x) for i, x in enumerate(outputs)),
        *((f"gradient of input {i}", x) for i, x in enumerate(of_inputs)),
        *((f"gradient of {name}", x) for name, x in of_parameters.items()),
    ]
