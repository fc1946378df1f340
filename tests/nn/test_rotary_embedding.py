"""fastllm.nn.RotaryEmbedding: its tables grow, follow the device and keep their precision."""

import copy

import pytest
import torch

from fastllm import nn, ops
from tests import reference


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_is_the_op_over_its_tables(interleaved, layout):
    rotary = nn.RotaryEmbedding(6, 20, base=500.0, interleaved=interleaved, layout=layout)
    x, (cos, sin) = torch.randn(2, 3, 4, 8), ops.rotary_tables(20, 6, 500.0)
    expected = reference.rotary_embedding(x, cos, sin, interleaved, layout, 5)
    torch.testing.assert_close(rotary(x, 5), expected)
    assert rotary.extra_repr() == f"6, base=500.0, interleaved={interleaved}, layout={layout!r}"


def test_given_frequencies_are_kept():
    frequencies = torch.tensor([0.5, 1e-3])
    rotary = nn.RotaryEmbedding(4, 6, frequencies=frequencies, scale=1.25)
    expected = ops.rotary_tables(12, 4, frequencies=frequencies.double(), scale=1.25)
    frequencies.zero_()  # nobody else's tensor
    assert torch.equal(rotary.cos, expected[0][:6])
    narrow = copy.deepcopy(rotary).bfloat16()
    for grown in (rotary, narrow):
        grown.grow(7)
        assert torch.equal(grown.cos, expected[0])
        assert torch.equal(grown.sin, expected[1])
    assert not rotary.state_dict()
    with torch.device("meta"):
        on_meta = nn.RotaryEmbedding(4, 12, frequencies=rotary.frequencies, scale=1.25)
    assert on_meta.cos.is_meta
    assert torch.equal(on_meta.to_empty(device="cpu").sin, expected[1])
    assert rotary.extra_repr() == "4, frequencies given, scale=1.25, interleaved=False, layout='bhtd'"


def test_the_first_heads_alone():
    rotary, x = nn.RotaryEmbedding(4, layout="bthd"), torch.randn(2, 5, 6, 8)
    output = rotary(x, 3, num_heads=4)
    assert torch.equal(output[:, :, :4], rotary(x, 3)[:, :, :4])
    assert torch.equal(output[:, :, 4:], x[:, :, 4:])


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_tables_grow(layout):
    rotary, x = nn.RotaryEmbedding(4, 2, layout=layout), torch.randn(1, 3, 5, 4)
    expected = nn.RotaryEmbedding(4, 100, layout=layout)(x, 1)
    assert torch.equal(rotary(x, 1), expected)
    assert rotary.cos.shape[0] == (6 if layout == "bhtd" else 4)
    rotary.grow(7)
    assert rotary.sin.shape[0] == (12 if layout == "bhtd" else 8)  # twice as many
    rotary.grow(3)
    assert rotary.cos.shape[0] >= 8
    with pytest.raises(ValueError, match="'positions' must be in"):  # a tensor is not looked at
        rotary(x, torch.tensor([50]))


def test_no_state_and_no_loss_of_precision():
    rotary = nn.RotaryEmbedding(4, 3000)
    assert not rotary.state_dict()
    assert not list(rotary.parameters())
    expected = rotary.cos.clone()
    for moved in (
        copy.deepcopy(rotary).bfloat16(),
        copy.deepcopy(rotary).half().float(),
        copy.deepcopy(rotary).double(),
    ):
        assert torch.equal(moved.cos, expected)
    assert rotary.to("meta").cos.device.type == "meta"


def test_made_on_meta():
    with torch.device("meta"):
        rotary = nn.RotaryEmbedding(4, 7)
    assert rotary.cos.is_meta
    assert torch.equal(rotary.to_empty(device="cpu").sin, nn.RotaryEmbedding(4, 7).sin)


def test_tables_made_while_generating_serve_training():
    rotary = nn.RotaryEmbedding(4, 2)
    with torch.inference_mode():
        rotary.grow(30)
    x = torch.randn(1, 2, 9, 4, requires_grad=True)
    rotary(x).sum().backward()
    assert x.grad is not None


def test_compiles():
    rotary, x = nn.RotaryEmbedding(4, 50), torch.randn(2, 3, 5, 4)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(rotary, fullgraph=True, backend="aot_eager")(x), rotary(x))
