"""Which part is held out: near to the share that was asked for, and no copy of what is trained on."""

import hashlib
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.data import holdout
from fastllm.data.documents import Chunk
from fastllm.data.holdout import LEFT_OUT, WHOLE, Survey


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    monkeypatch.setattr(holdout, "_BLOCK", 7)
    monkeypatch.setattr(holdout, "_KNOWN", 14)


def surveyed(documents, folder, seed=0):
    survey = Survey(seed, folder)
    assert list(survey.watch(Chunk(document, True) for document in documents)) == documents
    return survey


def cuts_of(documents, share, folder, seed=0):
    """Return how many characters of each document are for training."""
    with closing(surveyed(documents, folder, seed)) as survey:
        cuts = list(survey.hold_out(share).cuts())
    return [min(cut, len(document)) for cut, document in zip(cuts, documents, strict=True)]


def share_of(documents, share, folder, seed=0):
    """Return the share that is held out."""
    total = sum(map(len, documents))
    return 1 - sum(cuts_of(documents, share, folder, seed)) / total


def text(length, which):
    """Return a text that no other is equal to."""
    return (f"{which}," * length)[:length]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("length", [2, 999, 360_000])
def test_a_single_text_gives_its_end(tmp_path, share, length):
    assert cuts_of(["x" * length], share, tmp_path) == [int(length * (1 - share))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_the_share_is_near_to_what_was_asked(tmp_path, lengths, share, seed):
    documents = [text(length, i) for i, length in enumerate(lengths)]
    cuts = cuts_of(documents, share, tmp_path, seed)
    total = sum(lengths)
    held = total - sum(cuts)
    # Half of a document that may be held out whole, and a character of each that is cut.
    assert abs(held - share * total) <= min(share, 1 - share) * total / 2 + len(lengths) + 1
    if total > 1:
        assert held > 0
    largest = min(share, 1 - share) * total
    assert all(cut in (0, length) for cut, length in zip(cuts, lengths, strict=True) if length < largest)


@pytest.mark.parametrize(
    ("lengths", "share"),
    [
        ([250_000] * 4 + [300], 0.1),  # the short one alone would be next to nothing
        ([6_000, 10_000], 0.1),  # two languages: each is in both splits
        ([10_000, 30, 30, 30, 30], 0.1),
        ([1000] * 5, 0.5),
        ([50_000, *[10_000] * 5], 0.1),
    ],
)
def test_few_documents_of_all_lengths(tmp_path, lengths, share):
    documents = [text(length, i) for i, length in enumerate(lengths)]
    for seed in range(5):
        assert share_of(documents, share, tmp_path, seed) == pytest.approx(share, rel=0.25)
        for cut, length in zip(cuts_of(documents, share, tmp_path, seed), lengths, strict=True):
            assert cut > 0 or length <= max(share * sum(lengths), 1000)


def test_many_documents_are_held_out_whole(tmp_path):
    documents = [text(20 + i % 50, i) for i in range(3000)]
    for share in (0.001, 0.1, 0.9):
        cuts = cuts_of(documents, share, tmp_path)
        assert {cut in (0, len(document)) for cut, document in zip(cuts, documents, strict=True)} == {True}
        assert share_of(documents, share, tmp_path) == pytest.approx(share, rel=0.15)
    assert cuts_of(documents, 0.1, tmp_path) != cuts_of(documents, 0.1, tmp_path, seed=1)


def test_a_tiny_share_of_many_documents_is_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(holdout, "GROUPS", 256)
    monkeypatch.setattr(holdout, "_BITS", 8)
    documents = [text(30, i) for i in range(3000)]
    cuts = cuts_of(documents, 1e-5, tmp_path)
    assert set(cuts) == {0, 30}
    assert cuts.count(0) < 20


def test_equal_documents_are_on_the_same_side(tmp_path):
    documents = [text(100, i) for i in range(50)]
    copies = [*documents, *(document + "\n" for document in documents), *documents[::-1]]
    cuts = cuts_of(copies, 0.2, tmp_path)
    sides = [cut == 0 for cut in cuts]
    assert 0 < sum(sides) < len(sides)
    assert sides[:50] == sides[50:100] == sides[:99:-1]


def test_a_document_that_is_most_of_the_text_gives_the_same_end_everywhere(tmp_path):
    assert cuts_of(["some text"] * 5, 0.3, tmp_path) == [6] * 5


def test_the_draw_does_not_depend_on_chunks_or_order(tmp_path):
    documents = [text(40, i) for i in range(100)]
    cuts = dict(zip(documents, cuts_of(documents, 0.1, tmp_path), strict=True))
    assert cuts_of(documents[::-1], 0.1, tmp_path) == [cuts[document] for document in documents[::-1]]
    with closing(Survey(0, tmp_path)) as survey:
        list(survey.watch(Chunk(d[i : i + 3], i + 3 >= 40) for d in documents for i in range(0, 40, 3)))
        assert [min(cut, 40) for cut in survey.hold_out(0.1).cuts()] == list(cuts.values())


def test_the_hash_is_written_down(tmp_path):
    """It depends on seed and text alone: another one would mix up the splits of folders made before."""
    with closing(surveyed(["a b\n"], tmp_path, seed=3)) as survey:
        (record,) = next(survey.records())
    assert record["hash"] == int.from_bytes(hashlib.blake2b(b"3:ab", digest_size=8).digest(), "little")
    assert record["length"] == 4


def test_what_another_survey_has_is_left_out(tmp_path):
    documents = [text(30, i) for i in range(100)]
    others = [text(30, i) for i in range(40, 140)]
    with closing(surveyed(documents, tmp_path)) as survey, closing(surveyed(others, tmp_path)) as validation:
        assert survey.leave_out(validation) == (60, 1800)
        assert (survey.documents, survey.characters) == (40, 1200)
        assert list(survey.whole(val=False).cuts()) == [WHOLE] * 40 + [LEFT_OUT] * 60
        assert list(validation.whole(val=True).cuts()) == [0] * 100


def test_nothing_is_left_in_the_folder(tmp_path):
    survey = surveyed(["a", "b"], tmp_path)
    assert not list(tmp_path.iterdir())
    survey.close()
