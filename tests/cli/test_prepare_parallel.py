"""fastllm prepare parallel: what it reads, writes and says."""

import json

import pytest

from fastllm import cli
from fastllm.data import ParallelData
from tests.pairs import sentence_pairs, write_lines, write_pairs


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, sentence_pairs(200))
    return tmp_path


LINES = ["--source", "train.de", "--target", "train.en"]


def said(capsys, *words, code=0):
    """Return what prepare parallel says to these words, on both streams."""
    assert cli.main(["prepare", "parallel", "--out=data/x", "--vocab_size=320", *words]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err if code == 0 else captured.err


def texts(name, out="data/x"):
    split = ParallelData(out).split(name)
    return [(split.source_text(i), split.target_text(i)) for i in range(len(split))]


def test_two_files(capsys):
    told = said(capsys, *LINES, "--val_share=0.05", "--test_share=0.1")
    counts = {name: len(texts(name)) for name in ("train", "val", "test")}
    assert counts == {"train": 170, "val": 10, "test": 20}
    assert "val: 10 pairs, blocks of 10 neighbouring pairs drawn with the seed 0" in told
    assert "data/x: 170 train, 10 val, 20 test pairs, vocabulary of 320\n" in told
    assert sorted(texts("train") + texts("val") + texts("test")) == sorted(sentence_pairs(200))
    assert "(the data that was there is replaced)" in said(capsys, *LINES)


def test_what_is_left_out_is_told_with_examples(folder, capsys):
    write_pairs(folder, [*sentence_pairs(200), ("", "alone"), ("Haus", ""), ("x y z", "x y z")])
    told = said(capsys, *LINES)
    assert "left out 2 pairs: one side is empty (empty)\n    train.de, line 201: '' | 'alone'\n" in told
    assert "left out 1 pair: both sides are the same (identical)\n    train.de, line 203: 'x y z' | 'x y z'\n" in told
    dropped = ParallelData("data/x").manifest["dropped"]
    assert {reason: entry["pairs"] for reason, entry in dropped.items()} == {"empty": 2, "identical": 1}


def test_files_of_every_kind_together_with_tags(folder, capsys):
    write_lines(folder / "a.tsv", ["\t".join(pair) for pair in sentence_pairs(40, seed=1)])
    objects = [json.dumps({"de": source, "en": target}) for source, target in sentence_pairs(40, seed=2)]
    write_lines(folder / "b.jsonl", objects)
    fields = ["--source_field=de", "--target_field=en"]
    tags = ["--tag", "<news>", "<table>", "<web>"]
    said(capsys, *LINES, "--pairs", "a.tsv", "b.jsonl", *fields, *tags)
    seen = [source.split()[0] for name in ("train", "val") for source, _ in texts(name)]
    assert {tag: seen.count(tag) for tag in tags[1:]} == {"<news>": 200, "<table>": 40, "<web>": 40}
    error = said(capsys, *LINES, "--pairs", "a.tsv", *tags, code=2)
    assert "--tag must have one word, or one for each of the 2 files of --source and --pairs, got 3" in error


def test_named_splits_and_swapped_languages(folder, capsys):
    write_pairs(folder, [(target, source) for source, target in sentence_pairs(50, seed=5)], "dev")
    write_lines(folder / "test.tsv", ["\t".join(pair) for pair in sentence_pairs(20, seed=6)])
    told = said(capsys, *LINES, "--val_source=dev.de", "--val_target=dev.en", "--test_pairs=test.tsv")
    assert "fastllm: note: the languages seem to be swapped in the files for val" in told
    assert "val: all of dev.de | dev.en" in told and "test: all of test.tsv" in told
    assert texts("test") == sentence_pairs(20, seed=6) and len(texts("train")) == 200
    error = said(capsys, *LINES, "--test_pairs=test.tsv", "--test_share=0.1", code=2)
    assert "--test_share has no effect where files are named" in error


def test_both_directions(capsys):
    said(capsys, *LINES, "--tag=<2en>", "--reverse_tag=<2de>")
    assert len(texts("train")) + len(texts("val")) == 400
    assert {source.split()[0] for source, _ in texts("train")} == {"<2en>", "<2de>"}
    error = said(capsys, *LINES, "--tag", "<a>", "<b>", "--reverse_tag=<c>", code=2)
    assert "--reverse_tag needs one --tag, that of the first direction, got 2" in error


def test_vocabularies(capsys):
    told = said(capsys, *LINES, "--separate_vocabularies", "--vocab_size=310", "--model_type=bpe")
    assert "vocabulary of 310 and 310" in told
    assert not ParallelData("data/x").tokenizer.joint
    words = ["prepare", "parallel", *LINES, "--tokenizer_from=data/x", "--out=data/y"]
    assert cli.main(words) == 0
    assert ParallelData("data/y").tokenizer.to_json() == ParallelData("data/x").tokenizer.to_json()
    capsys.readouterr()
    assert cli.main([*words, "--model_type=bpe"]) == 2
    assert "--tokenizer_from uses a tokenizer as it is; leave out --model_type" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the sentences to train on: --source and --target, or --pairs"),
        (["--source", "train.de"], "--source needs --target, its translations line by line"),
        ([*LINES, "--val_target=train.en"], "--val_target needs --val_source"),
        ([*LINES, "train.en"], "--target must name as many files as --source (1), got 2"),
        (["--source=short.de", "--target=train.en"], "short.de has 150 lines and train.en 200, and line by line"),
        (["--source=latin.de", "--target=train.en"], "latin.de, line 1 is not UTF-8: invalid byte 0xfc at column 2"),
        (["--source=train.en", "--target=train.en"], "none of 200 pairs is of use: of 200 both sides are the same"),
        (["--source=none", "--target=train.en"], "none does not exist"),
        (["--pairs=train.de"], "'pairs' must end in .tsv, .jsonl, .ndjson, .tmx (or .gz), got train.de"),
        ([*LINES, "--max_tokens=0"], "'max_tokens' must be at least 1, got 0"),
        ([*LINES, "--vocab_size=9000"], "'vocab_size' must be at most "),
    ],
)
def test_what_cannot_be_is_said_and_nothing_lost(folder, capsys, words, sentence):
    said(capsys, *LINES)
    before = {file.name: file.read_bytes() for file in (folder / "data/x").iterdir()}
    write_lines(folder / "short.de", [source for source, _ in sentence_pairs(150)])
    (folder / "latin.de").write_bytes("fünf\n".encode("latin-1"))
    error = said(capsys, *words, code=2)
    assert error.startswith("fastllm: ") and error.count("\n") == 1 and sentence in error
    assert {file.name: file.read_bytes() for file in (folder / "data/x").iterdir()} == before
    assert [file.name for file in (folder / "data").iterdir()] == ["x"]
