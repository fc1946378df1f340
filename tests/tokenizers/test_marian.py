"""Marian's vocabularies: the ids of transformers' MarianTokenizer, and damaged folders."""

import json
import pickle

import pytest

from fastllm.errors import UserError
from fastllm.tokenizers import PairTokenizer, has_tokenizer, load_tokenizer
from tests import marian

transformers = pytest.importorskip("transformers")

UNKNOWN = 1
TEXTS = [
    *(text for _, text in marian.PAIRS[:40]), ">>de<< bathde", ">>fr<<  bathde fi", "", "  two  spaces ", "ΩΩ 漢字",
    "</s> <pad>", "ba >>de<< de", "ﬁ ½ Ａ",
]  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "apart"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("marian")
    marian.write_tokenizer(path, request.param)
    return path


def test_ids_are_theirs(folder):
    ours, theirs = load_tokenizer(folder), transformers.MarianTokenizer.from_pretrained(folder)
    for text in TEXTS:
        if text.startswith(">>") and (folder / "target_vocab.json").exists():
            continue
        if "</s>" not in text:  # special names inside a text stay text here
            assert ours.encode_source(text).tolist() == theirs(text)["input_ids"], text
        if "<" not in text:
            assert ours.encode_target(text).tolist() == theirs(text_target=text)["input_ids"], text
    assert ours.end not in ours.encode_source("a </s> b")[:-1]


def test_what_it_is(folder):
    pair = load_tokenizer(folder)
    assert isinstance(pair, PairTokenizer) and has_tokenizer(folder)
    assert pair.tags == marian.TAGS
    assert pair.start == pair.vocab_size - 1 and pair.never == (pair.start,) and pair.end == 0
    text = next(text for text, _ in marian.PAIRS if UNKNOWN not in pair.encode_target(text))
    assert pair.decode_target([pair.start, *pair.encode_target(text)]) == text
    text = next(text for _, text in marian.PAIRS if UNKNOWN not in pair.encode_source(text))
    drawn = {tuple(pair.encode_source(text, alpha=0.1, seed=seed)) for seed in range(8)}
    assert len(drawn) > 1
    assert {pair.decode_source(ids) for ids in drawn} == {text}


def test_it_comes_back(folder, tmp_path):
    pair = load_tokenizer(folder)
    pair.save(tmp_path)
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(pair))):
        assert again.to_json() == pair.to_json()
        assert again.encode_source(TEXTS[0]).tolist() == pair.encode_source(TEXTS[0]).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "target.spm").unlink(), "cannot read .*target.spm"),
        (lambda f: (f / "source.spm").write_bytes(b"x"), "source.spm and vocab.json: .* not a sentencepiece model"),
        (lambda f: (f / "vocab.json").unlink(), "cannot read .*vocab.json"),
        (lambda f: (f / "vocab.json").write_text('{"a": 0, "b": 2}'), "vocab.json is damaged: .* a piece for each id"),
        (lambda f: (f / "vocab.json").write_text('{"</s>": 0, "<unk>": 1}'), "must have '<pad>', got 2 pieces without"),
        (lambda f: (f / "config.json").write_text(json.dumps({"decoder_start_token_id": 9999})),
         "'start' must be in"),
    ],
)  # fmt: skip
def test_damaged_folders(tmp_path, change, message):
    marian.write_tokenizer(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)
