"""fastllm.nn.KVCache."""

import pytest
import torch

from fastllm import nn, ops

# B sequences, H heads, S capacity, T tokens, D head_dim


def tokens(b, t, h=2, d=8):
    return torch.randn(b, h, t, d), torch.randn(b, h, t, d)


def filled(lengths, capacity=10):
    cache = nn.KVCache(2, len(lengths), 2, capacity, 8)
    for layer in range(2):
        cache.fill(layer, *tokens(len(lengths), max(lengths)))
    cache.set_lengths(torch.tensor(lengths))
    return cache


def test_appends_behind_what_each_sequence_has():
    cache = filled([3, 5])
    before = cache.keys.clone()
    key, value = tokens(2, 2)
    cache.append(1, key, value)
    cache.advance(2)
    assert cache.lengths.tolist() == [5, 7]
    for row, start in enumerate((3, 5)):
        assert torch.equal(cache.keys[1, row, :, start : start + 2], key[row])
        assert torch.equal(cache.values[1, row, :, start : start + 2], value[row])
        assert torch.equal(cache.keys[1, row, :, :start], before[1, row, :, :start])
    assert torch.equal(cache.keys[0], before[0])


def test_fills_some_rows_and_leaves_the_others():
    cache = filled([3, 5, 4])
    before = cache.keys.clone()
    key, value = tokens(2, 2)
    rows = torch.tensor([2, 0])
    cache.fill(0, key, value, rows)
    cache.set_lengths(torch.tensor([2, 1]), rows)
    assert cache.lengths.tolist() == [1, 5, 2]
    assert torch.equal(cache.keys[0, 2, :, :2], key[0])
    assert torch.equal(cache.keys[0, 1], before[0, 1])
    cache.reset(torch.tensor([1]))
    assert cache.lengths.tolist() == [1, 0, 2]
    cache.reset()
    assert not cache.lengths.any()


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [2, 2], [0], [2], []])
def test_reorder_copies_shrinks_and_makes_no_buffer(rows):
    cache = filled([3, 5, 4])
    keys, values, lengths = cache.keys.clone(), cache.values.clone(), cache.lengths.clone()
    memory = cache.keys.data_ptr()
    cache.reorder(rows)
    assert cache.batch == len(rows)
    assert not rows or cache.keys.data_ptr() == memory
    assert torch.equal(cache.lengths, lengths[rows])
    for row, source in enumerate(rows):
        n = lengths[source]
        assert torch.equal(cache.keys[:, row, :, :n], keys[:, source, :, :n])
        assert torch.equal(cache.values[:, row, :, :n], values[:, source, :, :n])


def test_grows_again_up_to_what_it_was_made_for():
    cache = filled([3, 5, 4])
    kept = cache.keys[:, 1].clone()
    cache.reorder([1])
    cache.reorder([0, 0, 0])
    assert cache.lengths.tolist() == [5, 5, 5]
    assert torch.equal(cache.keys[:, 2, :, :5], kept[:, :, :5])
    with pytest.raises(ValueError, match=r"'rows' must be at most 3 numbers in \[0, 3\), got \[0, 0, 0, 0\]"):
        cache.reorder([0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"'rows' must be .*got \[3\]"):
        cache.reorder([3])


def test_lengths_are_given_as_numbers_or_tensors():
    cache = filled([3, 5, 4])
    for rows, lengths, expected in (
        (None, 2, [2, 2, 2]),
        ([1], 7, [2, 7, 2]),
        (torch.tensor([2, 0]), [1, 3], [3, 7, 1]),
        (None, torch.tensor([4, 5, 6]), [4, 5, 6]),
        ([0, 1], torch.tensor(0), [0, 0, 6]),
    ):
        cache.set_lengths(lengths, rows)
        assert cache.lengths.tolist() == expected
        cache.check_room(10 - max(expected))
        with pytest.raises(ValueError, match=f"a sequence has {max(expected)}, and {11 - max(expected)} more"):
            cache.check_room(11 - max(expected))


def test_says_when_it_is_full():
    cache = filled([3, 9])
    cache.append(0, *tokens(2, 1))
    with pytest.raises(ValueError, match="it is full: its capacity is 10 tokens, a sequence has 9, and 2 more were"):
        cache.append(0, *tokens(2, 2))
    with pytest.raises(ValueError, match="its capacity is 10 tokens, and 11 were given"):
        cache.fill(0, *tokens(2, 11))


@pytest.mark.parametrize("name", ["n_layer", "batch", "n_head", "capacity", "head_dim"])
def test_refuses_empty_sizes(name):
    sizes = {"n_layer": 1, "batch": 1, "n_head": 1, "capacity": 1, "head_dim": 1, name: 0}
    with pytest.raises(ValueError, match=f"'{name}' must be at least 1, got 0"):
        nn.KVCache(**sizes)


def test_keeps_its_own_dtype():
    cache = nn.KVCache(1, 1, 2, 4, 8, dtype=torch.bfloat16)
    qkv = torch.randn(1, 1, 3, 2, 8)
    attended = nn.CacheLayer(cache, 0).attend(qkv)
    assert cache.keys.dtype == torch.bfloat16
    assert attended.dtype == torch.float32
    torch.testing.assert_close(attended, qkv[:, :, 2], rtol=1e-2, atol=1e-2)  # one key: its value


def test_positions_of_each_sequence_own():
    embedding = nn.PositionalEmbedding(11, 20, 8)
    tokens = torch.randint(11, (3, 4))
    together = embedding(tokens, torch.tensor([0, 7, 16]))
    for row, offset in enumerate((0, 7, 16)):
        assert torch.equal(together[row], embedding(tokens[[row]], offset)[0])


@pytest.mark.parametrize("chunks", [[4, 1, 1, 3], [1] * 9, [9]])
def test_attention_over_a_cache_equals_attention_over_everything(chunks):
    qkv = torch.randn(2, 9, 3, 2, 8)
    cache = nn.KVCache(1, 2, 2, 9, 8)
    parts = []
    for part in qkv.split(chunks, 1):
        parts.append(nn.CacheLayer(cache, 0).attend(part))
        cache.advance(part.size(1))
    torch.testing.assert_close(torch.cat(parts, 1), ops.attention_packed(qkv, is_causal=True), rtol=1e-5, atol=1e-5)


def test_attention_layer_with_a_cache():
    layer = nn.CausalSelfAttention(16, 2).eval()
    x = torch.randn(2, 6, 16)
    cache = nn.KVCache(1, 2, 2, 6, 8)
    with torch.no_grad():
        first = layer(x[:, :4], cache=nn.CacheLayer(cache, 0, prefill=True))
        cache.set_lengths(4)
        rest = layer(x[:, 4:], cache=nn.CacheLayer(cache, 0))
        torch.testing.assert_close(torch.cat([first, rest], 1), layer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'query' must not require a gradient"):
        layer(x[:, 4:5], cache=nn.CacheLayer(filled([4, 4]), 0))
