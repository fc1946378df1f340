"""Each drop-in against its torch.nn class: same constructor, same state_dict both ways, same outputs and gradients."""

import pytest
import torch

from fastllm import nn

CASES = {
    "Linear": ((7, 5), {}, (3, 7)),
    "Linear without bias": ((7, 5), {"bias": False}, (2, 3, 7)),
    "LayerNorm": ((9,), {}, (4, 9)),
    "LayerNorm over two dimensions": (((3, 5),), {"eps": 1e-3}, (4, 3, 5)),
    "LayerNorm without affine": ((9,), {"elementwise_affine": False}, (4, 9)),
    "LayerNorm without bias": ((9,), {"bias": False}, (4, 9)),
    "RMSNorm": ((9,), {}, (4, 9)),
    "RMSNorm with eps": ((9,), {"eps": 1e-2}, (4, 9)),
    "GELU": ((), {}, (4, 9)),
    "GELU in the tanh form": (("tanh",), {}, (4, 9)),
    "Softmax": ((-1,), {}, (4, 9)),
    "Softmax over rows": ((0,), {}, (4, 9)),
}


def pair(case):
    """Return our module and torch's with the same random weights."""
    arguments, options, shape = CASES[case]
    name = case.split()[0]
    theirs = getattr(torch.nn, name)(*arguments, **options)
    ours = getattr(nn, name)(*arguments, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, shape


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_and_gradients(case):
    ours, theirs, shape = pair(case)
    results = []
    x = torch.randn(shape)
    grad = torch.randn_like(theirs(x))
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output.backward(grad)
        results.append([output.detach(), leaf.grad, *[p.grad for p in module.parameters()]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1.3e-6, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_goes_both_ways(case):
    ours, theirs, _ = pair(case)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_embedding():
    theirs = torch.nn.Embedding(11, 6, padding_idx=2)
    ours = nn.Embedding(11, 6, padding_idx=2)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.tensor([[1, 2, 10], [1, 1, 0]])
    torch.testing.assert_close(ours(tokens), theirs(tokens))
    ours(tokens).square().sum().backward()
    theirs(tokens).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_positional_embedding():
    module = nn.PositionalEmbedding(11, 5, 6)
    tokens = torch.tensor([[1, 2, 10], [1, 1, 0]])
    expected = module.token.weight[tokens] + module.position.weight[1:4]
    torch.testing.assert_close(module(tokens, position_offset=1), expected)


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}])
def test_cross_entropy_loss(options):
    logits, target = torch.randn(6, 9), torch.tensor([0, 8, -100, 3, 3, 1])
    ours, theirs = nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    probabilities = torch.rand(6, 9)
    torch.testing.assert_close(ours(logits, probabilities), theirs(logits, probabilities))


def test_linear_cross_entropy_loss_with_class_weights():
    weight = torch.rand(9)
    module = nn.LinearCrossEntropyLoss(5, 9, weight=weight)
    theirs = torch.nn.CrossEntropyLoss(weight)
    assert "weight" in module.state_dict()
    for target in (torch.tensor([0, 8, -100, 3, 3, 1]), torch.rand(6, 9)):
        x = torch.randn(6, 5)
        torch.testing.assert_close(module(x, target), theirs(module.linear(x), target))
    with pytest.raises(ValueError, match=r"LinearCrossEntropyLoss: 'weight' must have shape \[9\], got \[8\]"):
        nn.LinearCrossEntropyLoss(5, 9, weight=weight[:8])


@pytest.mark.parametrize("bias", [True, False])
def test_linear_cross_entropy_loss(bias):
    module = nn.LinearCrossEntropyLoss(5, 9, bias=bias, label_smoothing=0.1)
    x, target = torch.randn(6, 5), torch.tensor([0, 8, -100, 3, 3, 1])
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(module.linear(x), target)
    torch.testing.assert_close(module(x, target), expected)


FUSED_NORMS = [(nn.DropoutAddLayerNorm, torch.nn.LayerNorm), (nn.DropoutAddRMSNorm, torch.nn.RMSNorm)]


@pytest.mark.parametrize(("fused", "norm"), FUSED_NORMS)
def test_dropout_add_norm_is_its_parts(fused, norm):
    module, theirs = fused(8, p=0.0), norm(8)
    assert module.state_dict().keys() == theirs.state_dict().keys()
    theirs.weight.data.uniform_()
    module.load_state_dict(theirs.state_dict())
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    normed, new_residual = module(x, residual)
    torch.testing.assert_close(new_residual, x + residual)
    torch.testing.assert_close(normed, theirs(x + residual))
    normed, new_residual = module(x)
    torch.testing.assert_close(new_residual, x)
    torch.testing.assert_close(normed, theirs(x))
    assert repr(module).endswith("p=0.0)")


@pytest.mark.parametrize("fused", [fused for fused, _ in FUSED_NORMS])
def test_dropout_add_norm_of_a_branch_in_half_precision(fused):
    module, x, residual = fused(8, p=0.0), torch.randn(3, 8).bfloat16(), torch.randn(3, 8)
    normed, new_residual = module(x, residual)
    assert normed.dtype == torch.float32
    assert torch.equal(new_residual, x.float() + residual)


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.DropoutAdd(0.5), *(fused(64, 0.5) for fused, _ in FUSED_NORMS)])
def test_dropout_follows_the_training_flag(module):
    x, residual = torch.randn(32, 64), torch.randn(32, 64)
    inputs = (x,) if isinstance(module, nn.Dropout) else (x, residual)

    def call():
        output = module(*inputs)
        return output[-1] if isinstance(output, tuple) else output

    assert not torch.equal(call(), call())
    module.eval()
    assert torch.equal(call(), call())
    torch.testing.assert_close(call(), sum(inputs))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_causal_self_attention(dropout):
    module = nn.CausalSelfAttention(24, 3, dropout).eval()
    x = torch.randn(2, 7, 24)
    q, k, v = module.qkv(x).view(2, 7, 3, 3, 8).permute(2, 0, 3, 1, 4)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = module.projection(attended.transpose(1, 2).reshape(2, 7, 24))
    torch.testing.assert_close(module(x), expected)


def test_feed_forward():
    for bias in (True, False):
        module = nn.FeedForward(6, 10, bias=bias)
        x = torch.randn(3, 6)
        hidden = torch.nn.functional.gelu(module.expand(x), approximate="tanh")
        torch.testing.assert_close(module(x), module.contract(hidden))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Dropout(0.5, inplace=True), "'inplace' must be False"),
        (lambda: nn.Embedding(3, 4, max_norm=1.0), "'max_norm' must be None, got float 1.0"),
        (
            lambda: nn.DropoutAddLayerNorm((3, 5)),
            r"'normalized_shape' must be the last dimension's size, got \(3, 5\)",
        ),
        (lambda: nn.DropoutAddRMSNorm((3, 5)), r"DropoutAddRMSNorm: 'normalized_shape' must be the last .*\(3, 5\)"),
        (lambda: nn.CausalSelfAttention(10, 3), r"'n_embd' must be a multiple of n_head \(3\), got 10"),
        (lambda: nn.Softmax()(torch.randn(3)), "'dim' must be an int"),
    ],
)
def test_what_is_not_supported_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
