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
