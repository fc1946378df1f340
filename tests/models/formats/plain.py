"""A Llama in plain float64 steps, over a state_dict of fastllm's names: what the names and settings must mean."""

import math

import torch

# T tokens, C channels, H heads, K heads of keys and values, D channels of a head, V vocabulary


def frequencies(config):
    """Return radians a position of each pair (D/2,), and what queries and keys are multiplied with."""
    d, factor = config.head_size, config.rope_factor
    context = config.rope_context or config.context_length
    pairs = torch.arange(d // 2, dtype=torch.float64)
    frequency = config.rope_base ** (-2 * pairs / d)
    if config.rope_scaling == "linear":
        return frequency / factor, 1.0
    if config.rope_scaling == "llama3":
        low, high = config.rope_low_frequency, config.rope_high_frequency
        turns = context * frequency / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequency * (kept + (1 - kept) / factor), 1.0
    if config.rope_scaling == "yarn":

        def pair_of(turns):
            return d * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_base))

        first = max(math.floor(pair_of(config.rope_beta_fast)), 0)
        last = min(math.ceil(pair_of(config.rope_beta_slow)), d - 1)
        slowed = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
        scale = 0.1 * math.log(factor) + 1 if config.rope_attention is None else config.rope_attention
        return frequency * (1 - slowed + slowed / factor), scale
    return frequency, 1.0


def plain_llama(state, config, tokens):
    """Return the logits (T, V) of tokens (T,)."""
    state = {name: tensor.double() for name, tensor in state.items()}
    d, length = config.head_size, len(tokens)
    frequency, scale = frequencies(config)
    angles = torch.arange(length)[:, None] * frequency
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (config.window or length))

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * state[f"{name}.weight"]

    def turn(x):
        a, b = x.chunk(2, -1)
        return scale * torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    x = state["embedding.weight"][tokens]
    for i in range(config.n_layer):
        block = f"blocks.{i}"
        qkv = norm(x, f"{block}.norm_1") @ state[f"{block}.attention.qkv.weight"].T
        if config.qkv_bias:
            qkv = qkv + state[f"{block}.attention.qkv.bias"]
        heads = qkv.split(d, -1)  # (T, D) each: H queries, K keys, K values
        queries, keys = heads[: config.n_head], heads[config.n_head : config.n_head + config.kv_heads]
        values, mixed = heads[config.n_head + config.kv_heads :], []
        for j, query in enumerate(queries):
            shared = j * config.kv_heads // config.n_head
            key = keys[shared]
            if config.qk_norm:
                query = norm(query, f"{block}.attention.query_norm")
                key = norm(key, f"{block}.attention.key_norm")
            scores = (turn(query) @ turn(key).T / d**0.5).masked_fill(~seen, -math.inf)
            mixed.append(scores.softmax(-1) @ values[shared])
        x = x + torch.cat(mixed, -1) @ state[f"{block}.attention.projection.weight"].T
        gate, up = (norm(x, f"{block}.norm_2") @ state[f"{block}.feed_forward.expand.weight"].T).chunk(2, -1)
        x = x + (gate * gate.sigmoid() * up) @ state[f"{block}.feed_forward.contract.weight"].T
    return norm(x, "norm") @ state["embedding.weight" if config.tie_embeddings else "output.weight"].T
