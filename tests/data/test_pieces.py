"""Cutting documents into pieces: nothing is lost, the hold-out is what it says, and cuts do not change ids."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.data import pieces
from fastllm.data.documents import Chunk
from fastllm.data.holdout import LEFT_OUT, WHOLE
from fastllm.data.pieces import (
    TRAIN,
    VAL,
    after_lone_newline,
    after_newline,
    anywhere,
    find_cut_for,
    nowhere,
    split_pieces,
)
from fastllm.errors import UserError
from fastllm.tokenizers import SentencePieceTokenizer

# GPT-2's pattern, from "Language models are unsupervised multitask learners" (Radford et al., 2019).
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def cut(chunks, cuts, find_cut=anywhere):
    """Return {split: its documents, each a list of pieces}."""
    found = {TRAIN: [[]], VAL: [[]]}
    for piece in split_pieces(chunks, cuts, find_cut):
        found[piece.split][-1].append(piece.text)
        if piece.ends:
            found[piece.split].append([])
    return {split: [parts for parts in documents if parts] for split, documents in found.items()}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 8)
    monkeypatch.setattr(pieces, "LONGEST", 30)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("border", [1, 170, 300])
@pytest.mark.parametrize("find_cut", [anywhere, after_newline, after_lone_newline, nowhere])
def test_a_document_that_is_cut_is_in_both_splits(small, size, border, find_cut):
    text = "some words\nof a text\n\nthat has\nlines " * 9
    chunks = [Chunk(text[i : i + size], i + size >= len(text)) for i in range(0, len(text), size)]
    found = cut([*chunks, Chunk("x", True), *chunks], [border, WHOLE, 0], find_cut)
    assert ["".join(parts) for parts in found[TRAIN]] == [text[:border], "x"]
    assert ["".join(parts) for parts in found[VAL]] == [text[border:], text]


def test_what_is_left_out_is_nowhere():
    found = cut([Chunk("a", False), Chunk("b", True), Chunk("c", True), Chunk("d", True)], [LEFT_OUT, WHOLE, 0])
    assert found == {TRAIN: [["c"]], VAL: [["d"]]}


@pytest.mark.parametrize("cuts", [[0], [0, 0, 0]])
def test_a_text_that_changed_between_its_readings_is_noticed(cuts):
    with pytest.raises(UserError, match="the text changed between its two readings"):
        cut([Chunk("a", True), Chunk("b", True)], cuts)


def test_pieces_do_not_depend_on_chunks(small):
    text = "one line\n\nanother line that is long\nand a third, x\ny\nz " * 3
    whole = cut([Chunk(text, True)], [100], after_lone_newline)
    for size in (1, 7, 40):
        chunks = [Chunk(text[i : i + size], i + size >= len(text)) for i in range(0, len(text), size)]
        assert cut(chunks, [100], after_lone_newline) == whole
    assert max(map(len, whole[TRAIN][0])) < 40


def test_a_document_that_may_not_be_cut_is_cut_when_it_is_too_long(small):
    text = "0123456789\n" * 12
    (parts,) = cut([Chunk("short", True), Chunk(text, True)], [0, WHOLE], nowhere)[TRAIN]
    assert "".join(parts) == text
    assert parts[0] == "0123456789\n" * 2  # after a newline, within LONGEST
    (parts,) = cut([Chunk("x" * 100, True)], [99], nowhere)[TRAIN]
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
