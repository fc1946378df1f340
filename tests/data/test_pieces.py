"""Cutting documents into pieces: nothing is lost, the hold-out is what it says, and cuts do not change ids."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import pieces
from fastllm.data.pieces import (
    TRAIN,
    VAL,
    HoldOut,
    Survey,
    after_lone_newline,
    after_newline,
    anywhere,
    draw,
    find_cut_for,
    nowhere,
    split_pieces,
)
from fastllm.data.sources import Chunk
from fastllm.tokenizers import SentencePieceTokenizer

# GPT-2's pattern, from "Language models are unsupervised multitask learners" (Radford et al., 2019).
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def surveyed(documents, seed=0):
    survey = Survey(seed)
    list(survey.watch(Chunk(document, True) for document in documents))
    return survey


def cut(chunks, hold_out, find_cut=anywhere):
    """Return {split: its documents, each a list of pieces}."""
    found = {TRAIN: [[]], VAL: [[]]}
    for piece in split_pieces(chunks, hold_out, find_cut):
        found[piece.split][-1].append(piece.text)
        if piece.ends:
            found[piece.split].append([])
    return {split: [parts for parts in documents if parts] for split, documents in found.items()}


def joined(documents):
    return "".join("".join(parts) for parts in documents)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 8)
    monkeypatch.setattr(pieces, "LONGEST", 30)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("find_cut", [anywhere, after_newline, after_lone_newline, nowhere])
def test_a_single_text_is_held_out_at_its_end(small, size, share, find_cut):
    text = "some words\nof a text\n\nthat has\nlines " * 9
    chunks = [Chunk(text[i : i + size], i + size >= len(text)) for i in range(0, len(text), size)]
    survey = Survey(0)
    list(survey.watch(chunks))
    found = cut(chunks, survey.hold_out(share), find_cut)
    border = int(len(text) * (1 - share))
    assert joined(found[TRAIN]) == text[:border]
    assert joined(found[VAL]) == text[border:]
    assert len(found[VAL]) == 1


@given(
    documents=st.lists(st.text("ab\n", min_size=1, max_size=40), min_size=2, max_size=12),
    seed=st.integers(0, 9),
    share=st.sampled_from([1e-6, 0.1, 0.3, 0.97]),
    few=st.sampled_from([1, 100]),  # more or fewer than there are
)
def test_documents_are_in_one_split_whole(documents, seed, share, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "FEW", few)
        hold_out = surveyed(documents, seed).hold_out(share)
    found = cut([Chunk(document, True) for document in documents], hold_out)
    for split in (TRAIN, VAL):
        expected = [d for i, d in enumerate(documents) if hold_out.split_of(i) == split]
        assert ["".join(parts) for parts in found[split]] == expected
        assert expected


@given(lengths=st.lists(st.integers(1, 1000), min_size=2, max_size=30), share=st.floats(0.01, 0.99))
def test_of_few_documents_about_the_share_of_the_characters_is_held_out(lengths, share):
    hold_out = surveyed(["x" * length for length in lengths]).hold_out(share)
    held = sum(length for i, length in enumerate(lengths) if hold_out.split_of(i) == VAL)
    wanted = share * sum(lengths)
    # What is missing is less than half of each document that could still be added, or there is but one document.
    left = [length for i, length in enumerate(lengths) if hold_out.split_of(i) == TRAIN]
    assert wanted - held <= min(left) / 2 or len(left) == 1
    assert held - wanted <= max(lengths) / 2 or held == min(lengths)


def test_a_long_document_among_short_ones_is_for_training():
    for seed in range(20):
        hold_out = surveyed(["x" * 10_000, *["x" * 30] * 4], seed).hold_out(0.1)
        assert [hold_out.split_of(i) for i in range(5)] == [TRAIN, VAL, VAL, VAL, VAL]


def test_equal_documents_are_held_out_by_their_draw():
    hold_out = surveyed(["abc"] * 1000, seed=8).hold_out(0.25)
    order = sorted(range(1000), key=lambda i: draw(8, i))
    assert {i for i in range(1000) if hold_out.split_of(i) == VAL} == set(order[:250])


def test_the_draw_is_written_down():
    """It depends on seed and index alone, for ever: another draw would mix up the splits of folders made before."""
    assert [round(draw(0, i), 6) for i in range(3)] == [0.385993, 0.298689, 0.299272]
    drawn = [draw(7, i) < 0.1 for i in range(20_000)]
    assert abs(sum(drawn) - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5


def test_pieces_do_not_depend_on_chunks(small):
    text = "one line\n\nanother line that is long\nand a third, x\ny\nz " * 3
    whole = cut([Chunk(text, True)], HoldOut(0.5, 0, cut=100), after_lone_newline)
    for size in (1, 7, 40):
        chunks = [Chunk(text[i : i + size], i + size >= len(text)) for i in range(0, len(text), size)]
        assert cut(chunks, HoldOut(0.5, 0, cut=100), after_lone_newline) == whole
    assert max(map(len, whole[TRAIN][0])) < 40


def test_a_document_that_may_not_be_cut_is_cut_when_it_is_too_long(small):
    text = "0123456789\n" * 12
    (parts,) = cut([Chunk("short", True), Chunk(text, True)], HoldOut(0.5, 0, always_val=0, always_train=1), nowhere)[
        TRAIN
    ]
    assert "".join(parts) == text
    assert parts[0] == "0123456789\n" * 2  # after a newline, within LONGEST
    (parts,) = cut([Chunk("x" * 100, True)], HoldOut(0.5, 0, cut=99), nowhere)[TRAIN]
    assert [len(part) for part in parts] == [30, 30, 30, 9]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("characters", anywhere), ("bytes", anywhere), ("gpt2", after_lone_newline), ("another", nowhere)],
)
def test_cuts_follow_the_tokenizer(kind, expected):
    assert find_cut_for(SimpleNamespace(kind=kind)) == expected


@pytest.mark.parametrize(
    ("lossless", "crosses_lines", "expected"),
    [(True, False, after_newline), (True, True, nowhere), (False, False, nowhere)],
)
def test_cuts_follow_sentencepieces_model(lossless, crosses_lines, expected):
    tokenizer = object.__new__(SentencePieceTokenizer)
    tokenizer.lossless, tokenizer.crosses_lines = lossless, crosses_lines
    assert find_cut_for(tokenizer) == expected


@given(st.text(alphabet="ab1' .\n\r\t\u00a0é", max_size=60))
def test_gpt2_words_end_where_cuts_are(text):
    regex = pytest.importorskip("regex")
    place = after_lone_newline(text, 1)
    if place:
        before, after = (regex.findall(GPT2_WORDS, part) for part in (text[:place], text[place:]))
        assert regex.findall(GPT2_WORDS, text) == before + after
        assert 1 < place < len(text)
