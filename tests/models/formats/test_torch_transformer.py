"""Models that are built around torch.nn.Transformer: what they compute, from their state dict."""

import math

import pytest
import torch

from fastllm.models import TransformerConfig, from_torch_transformer

V, C, S = 50, 32, 41


class Theirs(torch.nn.Module):
    """A model as tutorials have it: two tables, sines and cosines, a linear layer on top."""

    def __init__(self, **options):
        super().__init__()
        self.transformer = torch.nn.Transformer(C, 4, 2, 3, 64, 0.0, batch_first=True, **options)
        self.source, self.target = torch.nn.Embedding(S, C), torch.nn.Embedding(V, C)
        self.generator = torch.nn.Linear(C, V)
        angles = torch.arange(16.0)[:, None] * 10000 ** (-torch.arange(0, C, 2) / C)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], -1).flatten(-2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)

    def forward(self, source, target):
        embedded = (
            table(ids) * math.sqrt(C) + self.positions[: ids.size(1)]
            for table, ids in ((self.source, source), (self.target, target))
        )
        mask = torch.nn.Transformer.generate_square_subsequent_mask(target.size(1))
        return self.generator(self.transformer(*embedded, tgt_mask=mask, tgt_is_causal=True))


CONFIG = {
    "vocab_size": V, "source_vocab_size": S, "context_length": 16, "n_encoder_layer": 2, "n_decoder_layer": 3,
    "n_head": 4, "n_embd": C, "n_hidden": 64, "dropout": 0.0, "share_embeddings": "none", "output_bias": True,
    "final_norm": True,
}  # fmt: skip
NAMES = {
    "embedding": "target.weight", "source_embedding": "source.weight", "output": "generator",
    "prefix": "transformer.", "ignored": ["positions"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({"norm_first": True, "activation": "gelu"}, {"norm_first": True, "activation": "gelu"}),
    ],
)
def test_same_logits(options, settings):
    torch.manual_seed(0)
    theirs = Theirs(**options).eval()
    ours = from_torch_transformer(theirs.state_dict(), TransformerConfig(**CONFIG, **settings), **NAMES)
    source, target = torch.randint(S, (3, 9)), torch.randint(V, (3, 7))
    torch.testing.assert_close(ours.eval()(source, target), theirs(source, target), rtol=0, atol=2e-5)
    with torch.no_grad():
        ours.embedding.weight.zero_()  # its weights are its own
    assert theirs.target.weight.any()


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ({"output": None}, {}, "'output' must be given, as config.share_embeddings is none, got None"),
        ({"output": None, "source_embedding": None}, {"source_vocab_size": None, "share_embeddings": "all",
          "output_bias": False}, "has no '(source.weight|generator.weight)', which is among the weights"),
        ({"embedding": "tgt.weight"}, {}, "the weights lack 'tgt.weight'"),
        ({"ignored": ()}, {}, "a torch.nn.Transformer of these settings has no 'positions'"),
        ({"prefix": ""}, {}, "the weights lack 'encoder.layers.0.self_attn.in_proj_weight'"),
        ({}, {"final_norm": False}, "'final_norm' must be True"),
        ({}, {"activation": "swiglu"}, "'activation' must be one without gates, got swiglu"),
        ({}, {"n_hidden": 48}, r"'transformer.encoder.layers.0.linear1.weight' must have the shape \(48, 32\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit(names, settings, message):
    with pytest.raises(ValueError, match=message):
        from_torch_transformer(Theirs().state_dict(), TransformerConfig(**{**CONFIG, **settings}), **{**NAMES, **names})
