"""Plain, obvious references for every op, in whatever dtype they are given: tests call them in float64."""

import math

import torch

# B batch, H heads, T tokens (Tq of queries, Tk of keys), D head_dim, C channels, V vocabulary


def gelu(input, approximate="none"):
    if approximate == "tanh":
        return 0.5 * input * (1 + torch.tanh(math.sqrt(2 / math.pi) * (input + 0.044715 * input**3)))
    return 0.5 * input * (1 + torch.erf(input / math.sqrt(2)))


def bias_gelu(input, bias, approximate="none"):
    return gelu(input + bias, approximate)


def bias_relu(input, bias=None, p=0.0, rng_state=None):
    output = torch.relu(input if bias is None else input + bias)
    return output * dropout_multipliers(input.shape, p, rng_state).to(output) if p else output


def swiglu(input, up=None):
    gate, up = input.chunk(2, -1) if up is None else (input, up)
    return gate * torch.sigmoid(gate) * up


def rotary_embedding(input, cos, sin, interleaved=False, layout="bhtd", positions=0, num_heads=None):
    """(x, y) -> (x cos - y sin, x sin + y cos) for each pair."""
    heads = input if layout == "bhtd" else input.transpose(1, 2)
    start = torch.as_tensor(positions)
    at = start if start.dim() == 2 else start.reshape(-1, 1) + torch.arange(heads.shape[2])  # (B or 1, T)
    cos, sin = cos[at][:, None].to(heads), sin[at][:, None].to(heads)  # (B or 1, 1, T, pairs)
    pairs = cos.shape[-1]
    turning, rest = heads[..., : 2 * pairs], heads[..., 2 * pairs :]
    x, y = turning.unflatten(-1, (pairs, 2)).unbind(-1) if interleaved else turning.chunk(2, -1)
    turned = [x * cos - y * sin, x * sin + y * cos]
    turned = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    output = torch.cat([turned, rest], -1)
    if num_heads is not None:
        output = torch.cat([output[:, :num_heads], heads[:, num_heads:]], 1)
    return output if layout == "bhtd" else output.transpose(1, 2)


def linear(input, weight, bias=None):
    output = input @ weight.T
    return output if bias is None else output + bias


def philox(seed, block, offset):
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words for one 128-bit counter."""
    low = 0xFFFFFFFF
    counter = [block & low, block >> 32, offset & low, offset >> 32]
    key = [seed & low, seed >> 32]
    for _ in range(10):
        product0, product1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (product1 >> 32) ^ counter[1] ^ key[0],
            product1 & low,
            (product0 >> 32) ^ counter[3] ^ key[1],
            product0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def dropout_multipliers(shape, p, rng_state):
    """Element i is kept iff its 16 bits >= round(p * 65536); what is kept is scaled so that the mean stays."""
    seed, offset = (value & 0xFFFFFFFFFFFFFFFF for value in rng_state.tolist())
    threshold = int(p * 65536 + 0.5)
    scale = 65536 / (65536 - threshold) if threshold < 65536 else 0.0
    multipliers = []
    for block in range((math.prod(shape) + 7) // 8):
        for word in philox(seed, block, offset):
            multipliers += [scale if bits >= threshold else 0.0 for bits in (word & 0xFFFF, word >> 16)]
    return torch.tensor(multipliers[: math.prod(shape)], dtype=torch.float64).reshape(shape)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    dims = tuple(range(-len(normalized_shape), 0))
    centered = input - input.mean(dims, keepdim=True)
    output = centered / torch.sqrt((centered**2).mean(dims, keepdim=True) + eps)
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def rms_norm(input, normalized_shape, weight=None, eps=1e-5):
    dims = tuple(range(-len(normalized_shape), 0))
    output = input / torch.sqrt((input**2).mean(dims, keepdim=True) + eps)
    return output if weight is None else output * weight


def dropout_add(input, residual, p, rng_state, bias=None):
    added = input if bias is None else input + bias
    dropped = added * dropout_multipliers(input.shape, p, rng_state).to(input)
    return dropped if residual is None else residual + dropped


def softmax(input, dim):
    exponentials = torch.exp(input - input.max(dim, keepdim=True).values)
    return exponentials / exponentials.sum(dim, keepdim=True)


def embedding(input, weight, position_weight=None, position_offset=0):
    output = weight[input.long()]
    if position_weight is None:
        return output
    return output + position_weight[position_offset : position_offset + input.shape[-1]]


def attention_multipliers(shape, p, rng_state):
    """Dropout of attention weights: its rows are rounded up to a multiple of 8, so that each starts a Philox block."""
    b, h, tq, tk = shape
    return dropout_multipliers((b, h, tq, (tk + 7) // 8 * 8), p, rng_state)[..., :tk]


def attention(
    query, key, value, mask=None, is_causal=False, shift=0, key_lengths=None, multipliers=None, window=(-1, -1),
    alibi_slopes=None, softcap=None, segment_ids=None,
):  # fmt: skip
    """All of it with T x T scores; query i stands at position i + shift."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    tq, tk = scores.shape[-2:]
    distance = torch.arange(tk) - (torch.arange(tq)[:, None] + shift)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(scores)[..., None, None] * distance.abs()
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    visible = torch.ones(scores.shape, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    if is_causal:
        visible = visible & (distance <= 0)
    left, right = window
    if left >= 0:
        visible = visible & (distance >= -left)
    if right >= 0:
        visible = visible & (distance <= right)
    if key_lengths is not None:
        visible = visible & (torch.arange(tk) < key_lengths[:, None, None, None])
    if segment_ids is not None:
        visible = visible & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    scores = scores.masked_fill(~visible, -math.inf)
    sees_something = (scores > -math.inf).any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~sees_something, 0.0), -1) * sees_something
    if multipliers is not None:
        weights = weights * multipliers.to(weights)
    return weights @ value


def decode_attention(query, k_cache, v_cache, lengths, **options):
    """Each sequence alone over its own part of the caches, its queries at the end of it."""
    tq = query.shape[2]
    outputs = [
        attention(query[[b]], k_cache[[b], :, :n], v_cache[[b], :, :n], is_causal=True, shift=n - tq, **options)
        if n
        else query.new_zeros(1, *query.shape[1:3], v_cache.shape[3])
        for b, n in enumerate(lengths.tolist())
    ]
    return torch.cat(outputs)
