"""Pairs into a data folder: what is read, left out, held out and told."""

import json

import pytest

from fastllm.data import FilePairs, LinePairs, PairsOf, ParallelData, ParallelOptions, TokenData, prepare_parallel
from fastllm.data.parallel.languages import Languages
from fastllm.data.parallel.sources import Pair
from fastllm.errors import UserError
from tests.pairs import numbers, prepared, reversed_words


def texts(split):
    return [(split.source_text(i), split.target_text(i)) for i in range(len(split))]


def test_a_folder_holds_what_it_was_made_of(tmp_path):
    pairs = reversed_words(400)
    data = ParallelData(prepared(tmp_path / "data", pairs, keep_duplicates=True))
    kept = texts(data.split("train")) + texts(data.split("val"))
    assert set(kept) <= set(pairs)
    dropped = sum(entry["pairs"] for entry in data.manifest["dropped"].values())
    assert len(kept) + dropped == 400
    assert 20 <= len(data.split("val")) <= 80
    train = data.split("train")
    assert train.source_lengths[3] == len(train.source_ids(3)) and train.source_ids(3)[-1] == data.tokenizer.source_end
    assert train.target_ids(3).tolist() == data.tokenizer.encode_target(train.target_text(3)).tolist()
    data.verify()
    again = ParallelData(prepared(tmp_path / "again", pairs, keep_duplicates=True))
    assert again.identity() == data.identity()
    other = ParallelData(prepared(tmp_path / "other", pairs, keep_duplicates=True, seed=1))
    assert other.identity() != data.identity()


def test_nothing_that_is_held_out_is_trained_on(tmp_path):
    pairs = reversed_words(600, longest=2)  # many are there several times
    data = ParallelData(prepared(tmp_path / "data", pairs, test_share=0.1))
    held_out = {source for name in ("val", "test") for source, _ in texts(data.split(name))}
    assert held_out and not held_out & {source for source, _ in texts(data.split("train"))}
    assert len(set(texts(data.split("train")))) == len(data.split("train"))
    assert set(data.manifest["dropped"]) == {"duplicate", "held out"}


def test_what_is_left_out_and_why(tmp_path):
    good = reversed_words(300)
    bad = [("", "x"), ("same text", "same text"), ("Haus " * 90, "house"), ("Haus", "house " * 20), (good[0])]
    options = ParallelOptions(vocab_size=300, max_tokens=60, max_ratio=5.0)
    val = PairsOf([("Katze " * 90, "cat")])  # what is held out is never filtered by its length
    dropped = prepare_parallel(PairsOf([*good, *bad]), tmp_path / "data", options=options, val=val)["dropped"]
    assert dropped["empty"] == {"pairs": 1, "examples": ["pairs, pair 301: '' | 'x'"]}
    assert dropped["identical"]["examples"] == ["pairs, pair 302: 'same text' | 'same text'"]
    assert (dropped["too long"]["pairs"], dropped["ratio"]["pairs"]) == (1, 1)
    assert dropped["too long"]["examples"][0].startswith("pairs, pair 303: 'Haus Haus")
    assert dropped["duplicate"]["pairs"] == 305 - len({*good, *bad})


def test_documents_are_held_out_whole(tmp_path):
    lines = {"de": [], "en": []}
    for document in range(40):
        for source, target in reversed_words(5, seed=document, longest=9):
            lines["de"].append(f"{document} {source}")
            lines["en"].append(f"{target} {document}")
        lines["de"].append("")
        lines["en"].append("")
    for side, content in lines.items():
        (tmp_path / f"a.{side}").write_text("\n".join(content))
    corpus = LinePairs([tmp_path / "a.de"], [tmp_path / "a.en"])
    options = ParallelOptions(vocab_size=300, val_share=0.1)
    manifest = prepare_parallel(corpus, tmp_path / "data", options=options)
    val = {source.split()[0] for source, _ in texts(ParallelData(tmp_path / "data").split("val"))}
    train = {source.split()[0] for source, _ in texts(ParallelData(tmp_path / "data").split("train"))}
    assert len(val) == 4 and not val & train
    assert manifest["held_out"]["val"] == "20 pairs, whole documents drawn with the seed 0"


def test_named_splits(tmp_path):
    val, test = PairsOf([("Haus rot", "red house")], "v"), PairsOf([("Katze " * 99, "cat " * 99)], "t")
    options = ParallelOptions(vocab_size=300)
    manifest = prepare_parallel(
        PairsOf([*reversed_words(300), ("haus  Rot", "red house")]),
        tmp_path / "data",
        options=options,
        val=val,
        test=test,
    )
    data = ParallelData(tmp_path / "data")
    assert texts(data.split("val")) == [("Haus rot", "red house")]
    assert len(data.split("test")) == 1  # what is held out is never filtered by its length
    assert ("haus  Rot", "red house") not in texts(data.split("train"))
    assert manifest["held_out"] == {"val": "all of v", "test": "all of t"}


def test_both_directions_and_tags(tmp_path):
    options = {"tag": "<2en>", "reverse_tag": "<2de>", "val_share": 0.05}
    data = ParallelData(prepared(tmp_path / "data", reversed_words(200), **options))
    assert set(data.tokenizer.tags) == {"<2en>", "<2de>"}
    train = texts(data.split("train"))
    forward = [(s, t) for s, t in train if s.startswith("<2en> ")]
    backward = [(s, t) for s, t in train if s.startswith("<2de> ")]
    assert len(forward) == len(backward) == len(train) / 2
    assert {(t, s.removeprefix("<2en> ")) for s, t in forward} == {(s.removeprefix("<2de> "), t) for s, t in backward}


def test_tags_of_json(tmp_path):
    rows = [
        {"source": s, "target": t, "tag": "<news>" if i % 2 else ""} for i, (s, t) in enumerate(reversed_words(200))
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare_parallel(FilePairs([tmp_path / "a.jsonl"]), tmp_path / "data", options=ParallelOptions(vocab_size=300))
    data = ParallelData(tmp_path / "data")
    assert data.tokenizer.tags == ("<news>",)
    tagged = sum(text.startswith("<news> ") for text, _ in texts(data.split("train")))
    assert 0 < tagged < len(data.split("train"))


def test_separate_vocabularies_and_a_tokenizer_that_is_there(tmp_path):
    data = ParallelData(
        prepared(tmp_path / "data", reversed_words(300), separate_vocabularies=True, vocab_size=285, max_ratio=9)
    )
    assert not data.tokenizer.joint
    other = ParallelData(prepared(tmp_path / "other", numbers(200), tokenizer_from=tmp_path / "data", max_ratio=20))
    assert other.tokenizer.to_json() == data.tokenizer.to_json()
    with pytest.raises(UserError, match="has no tag '<x>'; it has none"):
        prepared(tmp_path / "third", numbers(200), tokenizer_from=tmp_path / "data", tag="<x>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 1.0}, r"'val_share' must be in \[0, 1\), got 1.0"),
        ({"max_tokens": 0}, "'max_tokens' must be at least 1, got 0"),
        ({"tag": "two words"}, "'tag' must be one word"),
        ({"reverse_tag": "<x>"}, "'reverse_tag' needs another 'tag'"),
        ({"vocab_size": 100}, "'vocab_size' must be at least 259"),
        ({"max_tokens": 1}, r"no pair is left for train: .*; \d+ because one side has more tokens than max_tokens"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(tmp_path / "data", reversed_words(200), **options)
    assert list(tmp_path.iterdir()) == []  # nothing half made


def test_what_may_be_a_mistake_is_told(tmp_path):
    same = [(f"line number {i} of text", f"line number {i} of text") for i in range(200)]
    data = ParallelData(prepared(tmp_path / "a", same[:60] + reversed_words(140)))
    assert any("of the pairs have the same text on both sides" in note for note in data.manifest["notes"])
    swapped = PairsOf([(t, s) for s, t in reversed_words(40, seed=5)])
    options = ParallelOptions(vocab_size=300)
    manifest = prepare_parallel(PairsOf(reversed_words(300)), tmp_path / "b", options=options, val=swapped)
    assert any("the languages seem to be swapped in the files for val" in note for note in manifest["notes"])
    languages = Languages(Pair(s, t, "", 0) for s, t in reversed_words(300))
    assert not languages.swapped(Pair(s, t, "", 0) for s, t in reversed_words(40, seed=6))


def test_each_kind_of_folder_says_what_it_is(tmp_path):
    from fastllm.data import prepare

    prepared(tmp_path / "pairs", reversed_words(200))
    prepare("some text " * 50, tmp_path / "text", ["made up"])
    with pytest.raises(UserError, match=r"has pairs of sentences, .* --model transformer"):
        TokenData(tmp_path / "pairs")
    with pytest.raises(UserError, match=r"has text of one language: .* `fastllm prepare parallel`"):
        ParallelData(tmp_path / "text")
    with pytest.raises(UserError, match="is not a folder of sentence pairs"):
        ParallelData(tmp_path / "nowhere")


def test_damage_is_found(tmp_path):
    folder = prepared(tmp_path / "data", reversed_words(200))
    file = next(folder.glob("train-source-0*.bin"))
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train-source-00000.bin is damaged"):
        ParallelData(folder).verify()
    file.write_bytes(content[:-2])
    with pytest.raises(UserError, match="is damaged: expected"):
        ParallelData(folder)
