"""Batches of pairs by tokens."""

import random

import numpy as np
import pytest
import torch

from fastllm.data import (
    PairBatch,
    PairsOf,
    ParallelBatches,
    ParallelData,
    ParallelOptions,
    Prefetcher,
    pair_batches,
    prepare_parallel,
)
from fastllm.data.source import Share
from fastllm.errors import UserError
from tests.pairs import prepared, reversed_words


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "data"
    return ParallelData(prepared(folder, reversed_words(700), keep_duplicates=True))


def rows(batch):
    """Return each pair's ids, as they are without padding."""
    found = []
    for source, length, target, labels in zip(*batch, strict=True):
        count = int((labels != -100).sum())
        assert (labels[count:] == -100).all()
        assert torch.equal(target[1:count], labels[: count - 1])  # one token ahead
        found.append((tuple(source[:length].tolist()), tuple(labels[:count].tolist())))
    return found


def everything(split):
    return sorted((tuple(split.source_ids(i)), tuple(split.target_ids(i))) for i in range(len(split)))


def batches_of(data, tokens=120, seed=3, **options):
    return ParallelBatches(data.split("train"), data.tokenizer, tokens, seed, longest=100, **options)


def test_an_epoch_has_every_pair_once(data):
    split, source = data.split("train"), batches_of(data)
    for _ in range(2):
        seen = []
        first = source.position
        while len(seen) < len(split):
            batch = source.next()
            assert batch.source.numel() <= 120 and batch.target.numel() <= 120
            assert (batch.target[:, 0] == data.tokenizer.start).all()
            seen += rows(batch)
        assert sorted(seen) == everything(split)
        assert source.pairs_seen(source.position) - source.pairs_seen(first) == len(split)


def test_epochs_differ_and_batches_are_functions_of_their_number(data):
    source = batches_of(data)
    n = source.batches_per_epoch
    firsts = [rows(source.batch(i)) for i in range(n)]
    assert [rows(source.batch(i)) for i in range(n)] == firsts
    assert firsts != [rows(source.batch(n + i)) for i in range(n)]
    resumed = batches_of(data, position=n + 5)
    later = resumed.next()
    assert rows(later) == rows(source.batch(n + 5)) and resumed.position == n + 6
    assert rows(batches_of(data, seed=4).batch(0)) != firsts[0]
    assert rows(batches_of(data).batch(2 * n)) == rows(source.batch(2 * n))  # without those in between


@pytest.mark.parametrize("of", [2, 3, 50])
def test_shares_are_the_batch(data, of):
    source = batches_of(data)
    for position in range(4):
        parts = [source.batch(position, Share(rank, of)) for rank in range(of)]
        together = [row for part in parts if part.num_targets() for row in rows(part)]
        assert together == rows(source.batch(position))
        for part in parts:  # one without rows has something to compute on
            assert part.size >= 1
            assert (part.arguments(torch.device("cpu"))[3] != -100).any()


def test_parts_are_the_batch(data):
    batch = batches_of(data, 400).batch(1)
    parts = batch.split(3)
    assert [row for part in parts for row in rows(part)] == rows(batch)
    assert sum(part.num_targets() for part in parts) == batch.num_targets()
    assert all(part.source.size(1) == part.source_lengths.max() for part in parts)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_evaluation_takes_every_pair_once(data, of):
    split = data.split("val")
    each = [list(pair_batches(split, data.tokenizer, 90, Share(rank, of))) for rank in range(of)]
    assert len({len(batches) for batches in each}) == 1
    seen = [row for batches in each for batch in batches if batch.num_targets() for row in rows(batch)]
    assert sorted(seen) == everything(split)


def test_little_is_padding_at_the_lengths_of_real_sentences(tmp_path):
    draw = random.Random(0)
    pairs = []
    for i in range(4000):
        words = max(1, round(draw.lognormvariate(2.7, 0.6)))
        more = max(1, round(words * draw.gauss(1.05, 0.15)))
        pairs.append((f"{i} " + "a " * min(words, 90), f"{i} " + "b " * min(more, 90)))
    options = ParallelOptions(vocab_size=290, keep_duplicates=True)
    prepare_parallel(PairsOf(pairs), tmp_path / "data", options=options)
    data = ParallelData(tmp_path / "data")
    source = ParallelBatches(data.split("train"), data.tokenizer, 4096, 0, longest=200)
    assert source.waste < 0.12
    measured = [source.batch(i) for i in range(source.batches_per_epoch)]
    places = sum(batch.source.numel() + batch.labels.numel() for batch in measured)
    used = sum(int(batch.source_lengths.sum()) + batch.num_targets() for batch in measured)
    assert source.waste == pytest.approx(1 - used / places)


def test_segmentations_are_drawn_anew_and_repeatably(data):
    plain, drawn = batches_of(data), batches_of(data, alpha=0.1)
    n = plain.batches_per_epoch
    tokenizer = data.tokenizer
    different = 0
    for position in (0, 1, n):
        ours, theirs = rows(plain.batch(position)), rows(drawn.batch(position))
        assert [tokenizer.decode_source(s) for s, _ in ours] == [tokenizer.decode_source(s) for s, _ in theirs]
        assert [tokenizer.decode_target(t) for _, t in ours] == [tokenizer.decode_target(t) for _, t in theirs]
        different += ours != theirs
        assert theirs == rows(batches_of(data, alpha=0.1).batch(position))
    assert different == 3
    with Prefetcher(batches_of(data, alpha=0.1), depth=2) as ahead:  # another thread draws the same
        for position in range(6):
            assert rows(ahead.next()) == rows(drawn.batch(position))


def test_a_pair_that_fits_no_batch(data):
    with pytest.raises(
        UserError, match=r"'batch_tokens' must be at least \d+, the tokens of the longest sentence, got 4"
    ):
        batches_of(data, 4)


def test_a_batch_maps_and_counts():
    batch = PairBatch(*(torch.arange(6).view(2, 3) for _ in range(4)))._replace(source_lengths=torch.tensor([3, 2]))
    assert batch.size == 2 and batch.num_targets() == 6
    assert np.array_equal(batch.map(lambda tensor: tensor + 1).labels, batch.labels + 1)
