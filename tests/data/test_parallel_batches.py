"""Batches of pairs: full, hardly filled up, each pair once an epoch, repeatable by position from several threads."""

import random
import threading

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
)  # fmt: skip
from fastllm.data.source import Share
from fastllm.errors import UserError
from tests.pairs import sentence_pairs

# B pairs, S tokens of the longest source, T tokens of the longest target


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel") / "data"
    prepare_parallel(PairsOf(sentence_pairs(600)), folder, options=ParallelOptions(vocab_size=330, val_share=0.1))
    return ParallelData(folder)


@pytest.fixture
def batches(data):
    return ParallelBatches(data.split("train"), data.tokenizer, 500, seed=3, longest=128)


def rows(batch):
    """Return each pair of a batch as its ids without what is filled up, from the decoder's side also as labels."""
    return [
        (tuple(source[:length].tolist()), tuple(labels[labels != -100].tolist()))
        for source, length, labels in zip(batch.source, batch.source_lengths, batch.labels, strict=True)
    ]


def all_pairs(split):
    return sorted((tuple(split.source_ids(i)), tuple(split.target_ids(i))) for i in range(len(split)))


def test_a_batch(data):
    tokenizer, split = data.tokenizer, data.split("val")
    batch = next(pair_batches(split, tokenizer, 200))
    b, s = batch.source.shape
    t = batch.labels.shape[1]
    assert batch.size == b > 1 and batch.target.shape == (b, t) and batch.source_lengths.shape == (b,)
    assert all(part.dtype == torch.int64 for part in batch)
    assert int(batch.source_lengths.max()) == s and batch.num_targets() == int((batch.labels != -100).sum())
    for source, length, target, labels in zip(*batch, strict=True):
        assert source[length - 1] == tokenizer.source_end and (source[length:] == tokenizer.source_end).all()
        n = int((labels != -100).sum())
        assert labels[n - 1] == tokenizer.end and (labels[n:] == -100).all()
        assert target[0] == tokenizer.start and (target[1:n] == labels[: n - 1]).all()
        assert (target[n:] == tokenizer.start).all()


def test_every_pair_once_an_epoch_in_another_order(data, batches):
    epochs = []
    for _ in range(3):
        first = batches.position
        taken = []
        while len(taken) < len(data.split("train")):
            taken += rows(batches.next())
        assert sorted(taken) == all_pairs(data.split("train"))
        assert batches.pairs_seen(batches.position) - batches.pairs_seen(first) == len(taken)
        epochs.append(taken)
    assert epochs[0] != epochs[1] != epochs[2]


def test_pairs_meet_others_in_each_epoch(batches):
    n = batches.batches_per_epoch
    together = [{frozenset(rows(batches.batch(epoch * n + i))) for i in range(n)} for epoch in range(2)]
    assert len(together[0] & together[1]) < n / 2


def test_places_are_bounded_and_hardly_wasted(data, batches):
    sizes = []
    used = places = 0
    for position in range(batches.batches_per_epoch):
        batch = batches.batch(position)
        assert batch.source.numel() <= 500 and batch.target.numel() <= 500
        sizes.append(max(batch.source.numel(), batch.target.numel()))
        used += int(batch.source_lengths.sum()) + batch.num_targets()
        places += batch.source.numel() + batch.target.numel()
    assert batches.waste == pytest.approx(1 - used / places)
    assert 0 < batches.waste < 0.1
    assert sorted(sizes)[len(sizes) // 4] > 450  # most are nearly full


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


def test_a_batch_is_a_function_of_seed_and_position(data, batches):
    taken = [batches.next() for _ in range(2 * batches.batches_per_epoch)]
    again = ParallelBatches(data.split("train"), data.tokenizer, 500, seed=3, longest=128, position=7)
    assert again.position == 7 and rows(again.next()) == rows(taken[7]) and again.position == 8
    for position in (len(taken) - 1, 0, 11):  # in any order
        assert rows(again.batch(position)) == rows(taken[position])
    other = ParallelBatches(data.split("train"), data.tokenizer, 500, seed=4, longest=128)
    assert rows(other.batch(7)) != rows(taken[7])


def test_what_was_seen_is_what_the_batches_before_had(batches):
    seen = targets = 0
    for position in range(2 * batches.batches_per_epoch + 3):
        assert (batches.pairs_seen(position), batches.targets_seen(position)) == (seen, targets)
        batch = batches.batch(position)
        seen, targets = seen + batch.size, targets + batch.num_targets()


@pytest.mark.parametrize("of", [2, 3, 50])
def test_shares_of_a_batch(batches, of):
    whole = rows(batches.batch(5))
    parts = [batches.batch(5, Share(rank, of)) for rank in range(of)]
    counted = [part for part in parts if part.num_targets()]
    assert [row for part in counted for row in rows(part)] == whole
    for part in parts:
        if not part.num_targets():  # it has a row all the same, and the loss something to be of
            assert part.size == 1 and (part.arguments(torch.device("cpu"))[3] >= 0).all()


def test_parts_of_a_batch_are_as_long_as_their_own_longest(data):
    batch = next(pair_batches(data.split("train"), data.tokenizer, 10_000))
    parts = batch.split(7)
    assert [part.size for part in parts] == [7] * (batch.size // 7) + [batch.size % 7] * (batch.size % 7 > 0)
    assert [row for part in parts for row in rows(part)] == rows(batch)
    for part in parts:
        assert part.source.shape[1] == int(part.source_lengths.max())
        assert part.labels.shape[1] == part.target.shape[1] == int((part.labels != -100).sum(1).max())


def test_map_and_arguments(data):
    batch = next(pair_batches(data.split("val"), data.tokenizer, 100))
    assert isinstance(batch.map(torch.clone), PairBatch)
    for own, argument in zip(batch, batch.arguments(torch.device("cpu")), strict=True):
        assert torch.equal(own, argument)


@pytest.mark.parametrize("of", [1, 2, 7])
def test_all_pairs_once_to_evaluate(data, of):
    split = data.split("val")
    shares = [list(pair_batches(split, data.tokenizer, 300, Share(rank, of))) for rank in range(of)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch in share if batch.num_targets()]
    assert sorted(row for batch in counted for row in rows(batch)) == all_pairs(split)
    assert all(batch.source.numel() <= 300 and batch.target.numel() <= 300 for batch in counted)


def test_a_pair_too_long_for_a_batch_is_one_alone_where_all_are_evaluated(data):
    split = data.split("val")
    batches = list(pair_batches(split, data.tokenizer, 1))
    assert [batch.size for batch in batches] == [1] * len(split)
    assert sorted(row for batch in batches for row in rows(batch)) == all_pairs(split)


def test_a_split_without_pairs(data):
    empty = data.split("test")
    assert len(empty) == 0 and list(pair_batches(empty, data.tokenizer, 300)) == []
    with pytest.raises(UserError, match="no pairs"):
        ParallelBatches(empty, data.tokenizer, 300, seed=0, longest=128)


def test_a_pair_must_fit(data):
    split = data.split("train")
    most = int(max(split.source_lengths.max(), split.target_lengths.max()))
    assert ParallelBatches(split, data.tokenizer, most, seed=0, longest=128).next().size >= 1
    with pytest.raises(UserError, match=f"'batch_tokens' must be at least {most}, .* got {most - 1}"):
        ParallelBatches(split, data.tokenizer, most - 1, seed=0, longest=128)


# ----------------------------------------------------------------------------------------------------------------------
# Segmentations
# ----------------------------------------------------------------------------------------------------------------------


def drawing(data, **options):
    return ParallelBatches(
        data.split("train"), data.tokenizer, 2000, **{"seed": 3, "longest": 128, "alpha": 0.2} | options
    )


def texts(data, batch):
    return sorted(
        (data.tokenizer.decode_source(source), data.tokenizer.decode_target(target)) for source, target in rows(batch)
    )


def test_segmentations_are_drawn_by_seed_epoch_and_pair(data):
    drawn, best = drawing(data), drawing(data, alpha=0.0)
    once = drawn.batch(0)
    assert texts(data, once) == texts(data, best.batch(0))
    assert rows(once) != rows(best.batch(0)) and rows(once) == rows(drawing(data).batch(0))
    spelt = {}
    for position in range(3 * drawn.batches_per_epoch):
        for row, text in zip(rows(drawn.batch(position)), rows(best.batch(position)), strict=True):
            spelt.setdefault(text, set()).add(row)
    assert sum(len(ways) > 1 for ways in spelt.values()) > 0.9 * len(spelt)  # another in each epoch


def test_no_segmentation_is_longer_than_the_model(data):
    longest = int(max(data.split("train").source_lengths.max(), data.split("train").target_lengths.max()))
    for position in range(drawing(data).batches_per_epoch):
        batch = drawing(data, longest=longest, alpha=0.01).batch(position)
        assert max(batch.source.shape[1], batch.target.shape[1]) <= longest


def run_together(work, names):
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_draw_the_same_segmentations(data):
    """The library's generator is seeded anew for each draw, and each thread has its own."""
    want = [rows(drawing(data).batch(position)) for position in range(4)]
    got = {}

    def work(name):
        got[name] = [rows(drawing(data).batch(position)) for position in range(4)]

    run_together(work, range(3))
    assert got == dict.fromkeys(range(3), want)
    with Prefetcher(drawing(data)) as ahead:
        assert [rows(ahead.next()) for _ in range(4)] == want
