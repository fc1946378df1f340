"""Sub-layers are called, not read: a hook, LoRA or an int8 layer in the place of any Linear acts, of the output too."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastllm.models import model_class
from tests.models.kinds import EVERY_KIND, KINDS


def small(kind):
    config = KINDS[kind](23, 16)
    return model_class(config)(config)


def linears(model):
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


class LoRA(torch.nn.Module):
    """Hu et al., 2021: the layer's own output and that of two thin matrices."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(2, base.in_features))
        self.up = torch.nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, input):
        return self.base(input) + input @ self.down.T @ self.up.T


class Int8(torch.nn.Module):
    """Weights as int8 and a scale a row, as a quantized layer holds them: there is no float weight to read."""

    def __init__(self, base):
        super().__init__()
        weight = base.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.numbers = (weight / self.scale).round().to(torch.int8)
        self.bias = base.bias

    def forward(self, input):
        return F.linear(input, self.numbers * self.scale, self.bias)


@EVERY_KIND
def test_lora_trains_wherever_it_is(kind):
    tokens, targets = torch.randint(23, (2, 2, 9))
    for name in linears(small(kind)):
        model = small(kind)
        model.set_submodule(name, LoRA(model.get_submodule(name)))
        loss = model.loss(tokens, targets)
        expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        loss.backward()
        lora = model.get_submodule(name)
        assert lora.down.grad.abs().max() > 0 and lora.up.grad.abs().max() > 0, name


@EVERY_KIND
def test_an_int8_layer_gives_nearly_the_same_wherever_it_is(kind):
    model = small(kind).eval()
    tokens = torch.randint(23, (2, 9))
    expected = model.loss(tokens, tokens).item()
    for name in linears(model):
        changed = copy.deepcopy(model)
        changed.set_submodule(name, Int8(model.get_submodule(name)))
        loss = changed.loss(tokens, tokens).item()
        assert loss == pytest.approx(expected, rel=0.01)
        assert loss != expected, f"{name} was not called"


@EVERY_KIND
def test_a_hook_acts_wherever_it_is(kind):
    tokens = torch.randint(23, (2, 9))
    model = small(kind).eval()
    before = model.loss(tokens, tokens).item()
    for name in [*linears(model), "embedding", "norm"]:
        calls = []
        hook = lambda module, given, output, calls=calls: calls.append(module)  # noqa: E731
        handle = model.get_submodule(name).register_forward_hook(hook)
        assert model.loss(tokens, tokens).item() == pytest.approx(before, rel=1e-5)
        handle.remove()
        assert len(calls) == 1, name


def test_a_hook_on_all_modules_sees_them_all():
    model, tokens, seen = small("gpt").eval(), torch.randint(23, (2, 9)), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, output: seen.append(module))
    try:
        model.loss(tokens, tokens)
    finally:
        handle.remove()
    wanted = [model.get_submodule(name) for name in [*linears(model), "embedding.token", "embedding.position"]]
    assert all(module in seen for module in wanted)


def test_what_is_put_in_the_place_of_a_table_is_looked_up():
    model = small("gpt").eval()
    tokens = torch.randint(23, (2, 9))
    expected = model(tokens)
    for name in ("token", "position"):
        changed = copy.deepcopy(model)
        table = getattr(changed.embedding, name)
        wrapped = torch.nn.Sequential(table, torch.nn.Identity())  # as an adapter wraps it
        setattr(changed.embedding, name, wrapped)
        changed.output = torch.nn.Linear(16, 23, bias=False)
        changed.output.weight = model.embedding.token.weight
        torch.testing.assert_close(changed(tokens), expected)


@EVERY_KIND
def test_a_copy_shares_nothing_and_stays_tied(kind):
    model = small(kind)
    copied = copy.deepcopy(model)
    table = (copied.embedding.token if kind == "gpt" else copied.embedding).weight
    assert table is not (model.embedding.token if kind == "gpt" else model.embedding).weight
    if "output.weight" not in model.state_dict():
        assert copied.output.weight is table
    tokens = torch.randint(23, (2, 9))
    with torch.no_grad():
        table.zero_()
    assert not torch.equal(copied(tokens), model(tokens))
