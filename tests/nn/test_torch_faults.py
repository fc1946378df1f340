"""Faults of torch.nn's attention classes, by their numbers in pytorch's tracker; ours do not have them."""

import pytest
import torch

from fastllm import nn
from tests.nn.twins import both, no_fast_path

B, T, E, H = 2, 6, 8, 2
CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)
MODES = pytest.mark.parametrize("training", [True, False])


def attention(training=True, **options):
    return nn.MultiheadAttention(E, H, batch_first=True, **options).train(training)


def layer(training=True, **options):
    return nn.TransformerEncoderLayer(E, H, 16, batch_first=True, **options).train(training)


def x():
    return torch.randn(B, T, E, requires_grad=True)


@MODES
@pytest.mark.parametrize("need_weights", [True, False])
def test_190486_160064_152028_rows_that_see_nothing_are_zero(training, need_weights):
    """And so are their weights, their gradients, and what they do to those of the others."""
    module, query = attention(training, bias=False), x()
    hidden = torch.zeros(T, T, dtype=torch.bool)
    hidden[2] = True
    for mask in (hidden, torch.zeros(T, T).masked_fill(hidden, float("-inf"))):
        output, weights = module(query, query.detach(), query.detach(), attn_mask=mask, need_weights=need_weights)
        assert not output[:, 2].any()
        assert weights is None or not weights[:, 2].any()
        (output.square().sum() + (0 if weights is None else weights.square().sum())).backward()
        assert not query.grad[:, 2].any()
        for gradient in (query.grad, *(p.grad for p in module.parameters())):
            assert gradient.isfinite().all()
            assert gradient.any()
        query.grad = None
        module.zero_grad()


@MODES
def test_190486_a_sequence_that_is_padding_throughout_is_finite(training):
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1] = True
    output = nn.TransformerEncoder(layer(training), 2)(x(), src_key_padding_mask=padding)
    output.sum().backward()
    assert output.isfinite().all()


@MODES
@pytest.mark.parametrize("gradients", [True, False])
def test_94428_97111_padding_changes_no_shape(training, gradients):
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[:, -2:] = True  # in every sequence
    module = nn.TransformerEncoder(layer(), 2).train(training)
    with torch.set_grad_enabled(gradients):
        assert module(x(), src_key_padding_mask=padding).shape == (B, T, E)


@pytest.mark.parametrize("masks", [
    {"src_mask": CAUSAL, "src_key_padding_mask": torch.zeros(B, T)},
    {"src_mask": CAUSAL.float(), "src_key_padding_mask": torch.zeros(B, T, dtype=torch.bool)},
    {"src_mask": torch.zeros(B * H, T, T), "is_causal": True},
    {"src_mask": CAUSAL, "is_causal": True, "src_key_padding_mask": torch.zeros(B, T, dtype=torch.bool)},
])  # fmt: skip
def test_115472_what_trains_also_evaluates(masks):
    module, tokens = layer(dropout=0.0), x()
    trained = module(tokens, **masks)
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(tokens, **masks), trained)


def test_100347_weights_come_beside_the_fused_output(monkeypatch):
    module, tokens = attention(), x()
    without, _ = module(tokens, tokens, tokens, need_weights=False)
    output, weights = module(tokens, tokens, tokens)
    assert torch.equal(output, without)  # bit for bit, so by the same kernel
    assert weights.shape == (B, T, T)


@MODES
@pytest.mark.parametrize("need_weights", [True, False])
def test_172338_causality_needs_no_mask(training, need_weights):
    module, tokens = attention(training), x()
    alone = module(tokens, tokens, tokens, is_causal=True, need_weights=need_weights)
    masked = module(tokens, tokens, tokens, attn_mask=CAUSAL, need_weights=need_weights)
    for a, b in zip(alone, masked, strict=True):
        assert a is b is None or torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
def test_118972_is_causal_means_one_thing(need_weights):
    """A query never sees what the mask hides, nor, being causal, what comes after it; whatever else is asked for."""
    module, tokens = attention(), x()
    first_hidden = torch.zeros(T, T, dtype=torch.bool)
    first_hidden[:, 0] = True
    got, _ = module(tokens, tokens, tokens, attn_mask=first_hidden, is_causal=True, need_weights=need_weights)
    expected, _ = module(tokens, tokens, tokens, attn_mask=CAUSAL | first_hidden, need_weights=need_weights)
    torch.testing.assert_close(got, expected)


def test_21518_136816_a_mask_of_the_other_polarity_is_explained():
    tokens = x()
    with pytest.raises(ValueError, match=r"'attn_mask' hides every key .* True hides, .* ~attn_mask"):
        attention()(tokens, tokens, tokens, attn_mask=torch.ones(T, T, dtype=torch.bool))


def test_42929_90842_returned_weights_have_no_dropout_in_them():
    module, tokens = attention(dropout=0.5), x()
    _, weights = module(tokens, tokens, tokens)
    assert weights.all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T))


@MODES
@pytest.mark.parametrize("gradients", [True, False])
def test_128413_hooks_run(training, gradients):
    module, called = layer(training), []
    for name, part in module.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.set_grad_enabled(gradients):
        module(x())
    assert set(called) == {name for name, _ in module.named_modules()}


@MODES
def test_78109_what_stands_for_out_proj_is_trained(training):
    class LoRA(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias
            self.added = torch.nn.Parameter(torch.zeros(E, E))

        def forward(self, input):
            return self.base(input) + input @ self.added

    module, tokens = attention(training), x()
    module.out_proj = LoRA(module.out_proj)
    module(tokens, tokens, tokens)[0].sum().backward()
    assert module.out_proj.added.grad.any()


@pytest.mark.parametrize("gradients", [True, False])
def test_115511_177013_export_and_compile_evaluation_too(gradients):
    module, tokens = nn.TransformerEncoder(layer(), 2).eval(), x().detach()
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.set_grad_enabled(gradients):
        expected = module(tokens, src_key_padding_mask=padding)[~padding]
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(module, (tokens,), {"src_key_padding_mask": padding}).module()
        for function in (compiled, exported):
            torch.testing.assert_close(function(tokens, src_key_padding_mask=padding)[~padding], expected)


@MODES
def test_148476_a_mask_has_gradients(training):
    ours, theirs = both("MultiheadAttention", E, H, batch_first=True)
    tokens, found = x(), []
    bias, padding = torch.randn(B * H, T, T), torch.randn(B, T)
    with no_fast_path():
        for module in (ours.train(training), theirs.train(training)):
            masks = [bias.clone().requires_grad_(), padding.clone().requires_grad_()]
            output, _ = module(tokens, tokens, tokens, attn_mask=masks[0], key_padding_mask=masks[1])
            found.append(torch.autograd.grad(output.square().sum(), masks))
    for a, b in zip(*found, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1.3e-6, atol=1e-4)


def test_119320_causality_alone_has_finite_gradients():
    """Of query, key and value that are longer than another."""
    module = attention()
    query, memory = x(), torch.randn(B, 3, E, requires_grad=True)
    output, _ = module(query, memory, memory, is_causal=True, need_weights=False)
    output.sum().backward()
    for gradient in (query.grad, memory.grad, *(p.grad for p in module.parameters())):
        assert gradient.isfinite().all()
