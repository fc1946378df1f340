"""Every architecture, small: what one promises all do, and the tests of a promise run over this list."""

import pytest

from fastllm.models import GPTConfig, LlamaConfig

# Names, and what makes the settings of V tokens and a context of T; all of 16 channels and 2 blocks.
KINDS = {
    "gpt": lambda v, t, **options: GPTConfig(v, t, n_layer=2, n_head=2, n_embd=16, **options),
    "llama": lambda v, t, **options: _llama(v, t, tie_embeddings=True, **options),
    "llama-yarn": lambda v, t, **options: _llama(v, t, rope_scaling="yarn", rope_factor=4.0, rope_context=4, **options),
    "mistral": lambda v, t, **options: _llama(v, t, window=5, head_dim=6, **options),
    "qwen2": lambda v, t, **options: _llama(v, t, qkv_bias=True, **options),
    "qwen3": lambda v, t, **options: _llama(v, t, qk_norm=True, head_dim=8, **options),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
# The same as options of `fastllm train`, beside those of tests/train/tiny.py.
TRAINED = {
    "gpt": [],
    "llama": ["--model=llama", "--n_kv_head=1", "--n_hidden=24"],
    "qwen3": ["--model=llama", "--n_kv_head=2", "--head_dim=6", "--qk_norm", "--no_tie_embeddings", "--window=5"],
}
EVERY_TRAINED = pytest.mark.parametrize("model", TRAINED)


def _llama(v, t, **options):
    return LlamaConfig(v, t, **{"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 16, "n_hidden": 24, **options})
