"""transformers' models attend with fastllm's kernels as with their own "eager" code."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from fastllm.integrations.transformers import register  # noqa: E402


@pytest.fixture(autouse=True)
def registered():
    register()


def tiny_llama():
    return transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip


def test_llama_equals_eager():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_llama(), attn_implementation="fastllm").eval()
    tokens, keep = torch.randint(64, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    keep[0, :3] = 0
    logits = model(tokens, attention_mask=keep).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits[keep == 1], model(tokens, attention_mask=keep).logits[keep == 1])
