"""Batches: each window once an epoch, every token once in an evaluation, documents kept apart, batches made ahead."""

import doctest
import importlib
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import Batches, Prefetcher, Split, windows
from fastllm.data.shuffle import STORED, Permutation
from fastllm.data.source import Share

# B batch, T tokens of context


def counting(n, starts=None, shard=None):
    """Return a split of the ids 0, 1, .., n - 1."""
    ids = np.arange(n, dtype=np.uint16)
    return Split([ids[i : i + (shard or n)] for i in range(0, n, shard or n)], starts)


@pytest.mark.parametrize("n", [1, 2, 1000, STORED, STORED + 1, 2**18, 2**18 + 1])
def test_permutation(n):
    for key in ((0, 1), (1, 1)):
        places = Permutation(n, key)(np.arange(n))
        assert (np.sort(places) == np.arange(n)).all()
    assert n < 3 or (places != Permutation(n, (0, 1))(np.arange(n))).mean() > 0.9


@pytest.mark.parametrize("n", [STORED, STORED + 1, 10**6 + 3])
@pytest.mark.parametrize("key", [0, 1, 2])
def test_permutations_look_random(n, key):
    """Each sixteenth of the indices is spread over all sixteenths of the places, and neighbours part."""
    places = Permutation(n, (key,))(np.arange(n))
    table = np.histogram2d(np.arange(n), places, bins=16)[0]
    expected = n / 256
    chi_squared = ((table - expected) ** 2 / expected).sum()  # of 225 degrees of freedom, less for want of replacement
    assert chi_squared < 225 + 4 * (2 * 225) ** 0.5
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / n**0.5
    steps = np.abs(np.diff(places))
    assert abs(steps.mean() / n - 1 / 3) < 4 * (1 / 18 / n) ** 0.5 * 2  # neighbouring steps share a place


def test_a_huge_permutation_takes_no_memory():
    n = 10**12
    places = Permutation(n, (1,))(np.arange(n - 20_000, n))
    assert len(set(places.tolist())) == 20_000
    assert 0 <= places.min() < places.max() < n
    assert abs(places.mean() / n - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5


@pytest.mark.parametrize("shard", [None, 64])
def test_every_window_once_an_epoch(shard):
    batches = Batches(counting(1001, shard=shard), batch_size=7, context_length=10, seed=3)
    starts = []
    for _ in range(14):
        tokens, targets, segment_ids = batches.next()
        assert tokens.dtype == targets.dtype == torch.int64
        assert (tokens == tokens[:, :1] + torch.arange(10)).all()
        assert (targets == tokens + 1).all()
        assert segment_ids is None
        starts += tokens[:, 0].tolist()
    assert len({start % 10 for start in starts}) == 1
    assert len(set(starts)) == 98  # of 99 windows
    assert batches.epoch == 0
    batches.next()  # the last window, and six of the next epoch
    assert batches.epoch == 1
    again = [start for n in range(15, 28) for start in batches.batch(n).tokens[:, 0].tolist()]
    # Another order too, not the same from another offset.
    assert np.diff(again).tolist() != np.diff(starts[6 : 6 + len(again)]).tolist()


def test_a_batch_is_a_function_of_seed_and_number():
    straight, resumed = (Batches(counting(500), 4, 16, seed=1) for _ in range(2))
    batches = [straight.next() for _ in range(40)]
    resumed.position = 38
    assert torch.equal(resumed.next().tokens, batches[38].tokens)
    assert resumed.position == 39
    for share in (Share(0, of=2), Share(1, of=2), Share(2, of=3)):
        rows = share.rows(4)
        assert torch.equal(straight.batch(7, share).tokens, batches[7].tokens[rows])
        assert torch.equal(straight.batch(7, share).targets, batches[7].targets[rows])
    assert straight.position == 40
    assert not torch.equal(Batches(counting(500), 4, 16, seed=2).next().tokens, batches[0].tokens)


def test_a_split_of_one_window():
    tokens, targets, _ = Batches(counting(9), 3, 8, seed=0).next()
    assert (tokens == torch.arange(8)).all()
    assert (targets == torch.arange(1, 9)).all()


def test_documents_are_kept_apart():
    split = counting(300, starts=np.array([0, 5, 6, 150, 299]))
    document_of = np.searchsorted(split.starts, np.arange(300), side="right")
    batches = Batches(split, 4, 16, seed=0, document_mask=True)
    for _ in range(10):
        tokens, targets, segment_ids = batches.next()
        for row, goals, segments in zip(tokens.tolist(), targets.tolist(), segment_ids.tolist(), strict=True):
            documents = document_of[row]
            assert segments == (documents - documents[0]).tolist()
            # The last token of a document predicts nothing: what follows is of another.
            expected = [t + 1 if document_of[t] == document_of[t + 1] else -100 for t in row]
            assert goals == expected


@given(
    n=st.integers(2, 200), t=st.integers(1, 40), b=st.integers(1, 5), world_size=st.integers(1, 4),
    document_mask=st.booleans(),
)  # fmt: skip
def test_evaluation_takes_every_token_once(n, t, b, world_size, document_mask):
    split = counting(n, starts=np.arange(0, n, 7))
    each = [
        list(windows(split, t, b, Share(rank, world_size), document_mask=document_mask)) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in each}) == 1
    seen = []
    for tokens, targets, segment_ids in sum(each, []):  # noqa: RUF017
        assert tokens.shape[1] == t
        assert tokens.shape[0] <= b
        counted = targets != -100
        assert (targets[counted] == tokens[counted] + 1).all()
        seen += targets[counted].tolist()
        assert (segment_ids is not None) == document_mask
        if document_mask:
            assert (segment_ids.diff() >= 0).all()
    assert sorted(seen) == [i for i in range(1, n) if not document_mask or i % 7]


def test_prefetched_batches_are_the_same():
    plain, ahead = (Batches(counting(500), 4, 16, seed=1, document_mask=True) for _ in range(2))
    with Prefetcher(ahead, share=Share(1, of=2), depth=3) as prefetcher:
        for expected in (plain.next(Share(1, of=2)) for _ in range(20)):
            batch = prefetcher.next()
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        assert prefetcher.position == plain.position == 20  # whatever was made ahead
        prefetcher.position = 5
        assert torch.equal(prefetcher.next().tokens, plain.batch(5, Share(1, of=2)).tokens)
        assert prefetcher.position == 6


def test_prefetching_is_ahead_by_its_depth_and_ends():
    made = []

    class Slow(Batches):
        def batch(self, position, rows=None):
            made.append(position)
            return super().batch(position, rows)

    prefetcher = Prefetcher(Slow(counting(500), 4, 16, seed=1), depth=3)
    assert not made  # nothing runs before it is asked for
    prefetcher.next()
    deadline = time.monotonic() + 20
    while len(made) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3, 4]  # one handed out, three ready, one waiting for room
    prefetcher.close()
    prefetcher.close()
    assert not any(thread.name == "fastllm-prefetch" for thread in threading.enumerate())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_for_a_gpu_are_pinned():
    plain, ahead = (Batches(counting(500), 4, 16, seed=1, document_mask=True) for _ in range(2))
    with Prefetcher(ahead, pin=True) as prefetcher:
        for part, expected in zip(prefetcher.next(), plain.next(), strict=True):
            assert part.is_pinned() and torch.equal(part, expected)


def test_an_error_in_the_thread_is_raised_where_it_is_asked_for():
    class Broken(Batches):
        def batch(self, position, rows=None):
            if position == 2:
                raise OSError("disk gone")
            return super().batch(position, rows)

    prefetcher = Prefetcher(Broken(counting(500), 4, 16, seed=1))
    prefetcher.next()
    prefetcher.next()
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            prefetcher.next()
    assert prefetcher.position == 2
    with pytest.raises(ValueError, match="'depth' must be at least 1, got 0"):
        Prefetcher(prefetcher.batches, depth=0)


@pytest.mark.parametrize("name", ["dataset", "shuffle"])
def test_docstring_examples(name):
    results = doctest.testmod(importlib.import_module(f"fastllm.data.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
