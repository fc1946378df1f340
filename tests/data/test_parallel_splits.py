"""Which pairs are held out, which are left out, and the notes about what may be a mistake."""

import json

import numpy as np
import pytest

from fastllm.data import (
    Corpora,
    FilePairs,
    LinePairs,
    PairsOf,
    ParallelData,
    ParallelOptions,
    Tagged,
    prepare_parallel,
)
from fastllm.data.parallel.languages import Languages, Samples, alike
from fastllm.data.parallel.sources import Pair
from fastllm.data.parallel.splits import Splits
from fastllm.errors import UserError
from tests.pairs import sentence_pairs, write_lines, write_pairs


def splits_of(corpus, val_share=0.1, test_share=0.0, seed=0, **options):
    return Splits(corpus, {}, {"val": val_share, "test": test_share}, seed, **options)


def by_split(splits):
    found = {"train": [], "val": [], "test": []}
    for split, pair in splits:
        found[split].append((pair.source, pair.target))
    return found


def prepare(folder, corpus, val=None, test=None, **options):
    prepare_parallel(corpus, folder, options=ParallelOptions(**{"vocab_size": 330} | options), val=val, test=test)
    return ParallelData(folder)


def texts(split):
    return [(split.source_text(i), split.target_text(i)) for i in range(len(split))]


# ----------------------------------------------------------------------------------------------------------------------
# What is held out
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 15, 40, 200, 5000])
def test_some_are_held_out_and_some_left_of_any_corpus(count):
    pairs = [(f"source {i}", f"target {i}") for i in range(count)]
    found = by_split(splits_of(PairsOf(pairs), 0.05))
    assert sorted(found["train"] + found["val"]) == sorted(pairs) and not found["test"]
    assert found["train"] and abs(len(found["val"]) - 0.05 * count) <= max(1, 0.02 * count)


def test_blocks_of_neighbours_are_held_out_where_there_are_no_documents():
    pairs = [(f"source {i}", f"target {i}") for i in range(4000)]
    splits = splits_of(PairsOf(pairs), 0.1, 0.05)
    assert splits.how["val"] == "400 pairs, blocks of 20 neighbouring pairs drawn with the seed 0"
    assert splits.how["test"] == "200 pairs, blocks of 20 neighbouring pairs drawn with the seed 0"
    found = by_split(splits)
    assert by_split(splits_of(PairsOf(pairs), 0.1, 0.05)) == found
    assert by_split(splits_of(PairsOf(pairs), 0.1, 0.05, seed=1)) != found
    held_out = {int(source.split()[1]) // 20 for source, _ in found["val"]}
    assert len(held_out) == 20 and held_out != set(range(20)) != set(range(180, 200))


def test_a_long_document_is_not_held_out_for_a_small_share(tmp_path):
    files = []
    for number in range(30):
        count = 2000 if number == 7 else 10
        pairs = [(f"{number} source {i}", f"target {i}") for i in range(count)]
        files.append(write_pairs(tmp_path, pairs, f"{number:02d}"))
    splits = splits_of(LinePairs(*zip(*files, strict=True)), 0.05)
    found = by_split(splits)
    assert splits.how["val"].endswith("whole documents drawn with the seed 0")
    assert 80 <= len(found["val"]) <= 130 and "7" not in {source.split()[0] for source, _ in found["val"]}


def test_documents_without_pairs_of_use_are_not_held_out(tmp_path):
    sources = "\n\n".join(f"source {i}" for i in range(100)) + "\n\nalone" * 400
    targets = "\n\n".join(f"target {i}" for i in range(100)) + "\n\n" * 400
    (tmp_path / "a").write_text(sources + "\n")
    (tmp_path / "b").write_text(targets + "\n")
    splits = splits_of(LinePairs([tmp_path / "a"], [tmp_path / "b"]), 0.1)
    assert splits.how["val"].startswith("10 pairs, whole documents")
    assert sum(bool(target) for _, target in by_split(splits)["val"]) == 10


def test_too_few_to_hold_out():
    with pytest.raises(UserError, match=r"1 pairs are too few to hold some out for val: use more, or name files with"):
        splits_of(PairsOf([("a", "b")]))
    with pytest.raises(UserError, match="too few to hold some out for test"):
        splits_of(PairsOf([("a", "b"), ("c", "d")]), 0.5, 0.5)
    with pytest.raises(UserError, match=r"none of 2 pairs is of use: of 1 one side is empty; of 1 both sides are"):
        splits_of(PairsOf([("a", ""), ("b", "b")]))


def test_files_that_change_between_two_readings():
    class Growing(PairsOf):
        def pairs(self):
            self._pairs.append(("one", "more"))
            return super().pairs()

    with pytest.raises(UserError, match="the files changed between two readings; run it again"):
        splits_of(Growing(sentence_pairs(50)))


def test_a_target_that_is_held_out_is_no_source_of_the_other_direction(tmp_path):
    pairs = sentence_pairs(100)
    val = PairsOf(pairs[:3])
    again = [("ganz anders " + source, target) for source, target in pairs[:3]]  # other sources, the same targets
    both = {"tag": "<2en>", "reverse_tag": "<2de>"}
    data = prepare(tmp_path / "both", PairsOf([*pairs[3:], *again]), val, **both)
    assert data.manifest["dropped"]["held out"]["pairs"] == 3
    learnt = {source.split(" ", 1)[1] for source, _ in texts(data.split("train"))}
    assert not learnt & {source.split(" ", 1)[1] for source, _ in texts(data.split("val"))}
    assert "held out" not in prepare(tmp_path / "one", PairsOf([*pairs[3:], *again]), val).manifest["dropped"]


# ----------------------------------------------------------------------------------------------------------------------
# What is left out
# ----------------------------------------------------------------------------------------------------------------------


def test_shares_are_filtered_and_named_files_are_not(tmp_path):
    pairs = sentence_pairs(300, longest=30)
    data = prepare(tmp_path / "share", PairsOf(pairs), val_share=0.3, max_tokens=60)
    assert data.manifest["dropped"]["too long"]["pairs"] > 50
    for name in ("train", "val"):
        split = data.split(name)
        assert max(split.source_lengths.max(), split.target_lengths.max()) <= 60
    named = prepare(tmp_path / "named", PairsOf(pairs[:200]), PairsOf(pairs[200:], "mine"), max_tokens=60)
    assert texts(named.split("val")) == pairs[200:]
    lengths = np.maximum(named.split("val").source_lengths, named.split("val").target_lengths)
    longer, most = (lengths > 60).sum(), lengths.max()
    assert longer and named.manifest["notes"] == [
        f"{longer} pairs of the files for val have more tokens than max_tokens (60); they stay, and the longest needs "
        f"a context_length of {most}"
    ]


def test_empty_sides_of_named_files_are_told(tmp_path):
    val = PairsOf([*sentence_pairs(3, seed=9), ("x", "")], "mine")
    data = prepare(tmp_path / "data", PairsOf(sentence_pairs(100)), val)
    assert data.manifest["dropped"]["empty"]["examples"] == ["mine, pair 4: 'x' | ''"]
    assert any(note.startswith("1 pairs of the files for val are left out") for note in data.manifest["notes"])


def test_both_directions_or_none(tmp_path):
    pairs = sentence_pairs(300, longest=30)
    data = prepare(tmp_path / "data", PairsOf(pairs), tag="<2en>", reverse_tag="<2de>", max_tokens=60)
    train = texts(data.split("train"))
    there = {(source.removeprefix("<2en> "), target) for source, target in train if source.startswith("<2en> ")}
    back = {(target, source.removeprefix("<2de> ")) for source, target in train if source.startswith("<2de> ")}
    assert there == back and len(there) * 2 == len(train)
    counted = data.manifest["dropped"]["too long"]["pairs"]
    assert len(train) + len(data.split("val")) == 2 * (300 - counted)


def test_short_pairs_and_duplicates(tmp_path):
    pairs = sentence_pairs(100)
    more = [pairs[0], ("HALLO welt", "hello world"), ("hallo welt", "hello world"), ("ja", "yes")]
    data = prepare(tmp_path / "data", PairsOf([*pairs, *more]), val_share=0.05, min_tokens=4, max_ratio=9.0)
    dropped = data.manifest["dropped"]
    assert dropped["too short"]["examples"] == ["pairs, pair 104: 'ja' | 'yes'"]
    assert dropped["duplicate"]["pairs"] == 1  # another case is another text
    kept = prepare(tmp_path / "kept", PairsOf([*pairs, *more]), val_share=0.05, keep_duplicates=True, max_ratio=9.0)
    assert "duplicate" not in kept.manifest["dropped"]


def test_halves_of_characters(tmp_path):
    objects = [{"source": source, "target": target} for source, target in sentence_pairs(60)]
    rows = [*map(json.dumps, objects), r'{"source": "kaputt \ud83d", "target": "broken"}']
    data = prepare(tmp_path / "data", FilePairs([write_lines(tmp_path / "a.jsonl", rows)]), val_share=0.2)
    example = f"{tmp_path}/a.jsonl, line 61: 'kaputt ?' | 'broken'"
    assert data.manifest["dropped"]["surrogate"] == {"pairs": 1, "examples": [example]}


def test_tags_of_corpora(tmp_path):
    pairs = sentence_pairs(120)
    corpus = Corpora([Tagged(PairsOf(pairs[:60]), "<news>"), Tagged(PairsOf(pairs[60:]), "<talks>")])
    data = prepare(tmp_path / "data", corpus, tag="<2en>")
    assert sorted(data.tokenizer.tags) == ["<2en>", "<news>", "<talks>"]
    starts = {" ".join(source.split()[:2]) for source, _ in texts(data.split("train"))}
    assert starts == {"<2en> <news>", "<2en> <talks>"}
    ids = [data.tokenizer.source.special_tokens[name] for name in data.tokenizer.tags]
    assert all(sum(id in ids for id in data.split("train").source_ids(i)) == 2 for i in range(100))
    with pytest.raises(UserError, match="pairs, pair 1 has the tag '<web>', which no training pair has"):
        prepare(tmp_path / "other", corpus, Tagged(PairsOf(pairs[:3]), "<web>"))
    with pytest.raises(UserError, match="'tag' must be one word without commas, got 'a,b'"):
        prepare(tmp_path / "other", Tagged(PairsOf(pairs), "a,b"))


def test_a_failure_loses_nothing(tmp_path):
    data = prepare(tmp_path / "data", PairsOf(sentence_pairs(100)))
    with pytest.raises(UserError, match="none of 1 pairs is of use"):
        prepare(tmp_path / "data", PairsOf([("", "x")]))
    data.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has files that prepare did not write .notes.txt."):
        prepare(tmp_path / "data", PairsOf(sentence_pairs(100)))
    with pytest.raises(UserError, match="'val_share' must be above 0 where no validation pairs are named"):
        prepare(tmp_path / "new", PairsOf(sentence_pairs(100)), val_share=0.0)
    with pytest.raises(UserError, match=r"'min_tokens' must be at most max_tokens \(9\), got 10"):
        prepare(tmp_path / "new", PairsOf(sentence_pairs(100)), max_tokens=9, min_tokens=10)


def test_progress_is_told():
    told = []
    splits_of(PairsOf([(f"source {i}", "target") for i in range(30)]), told=lambda done, of: told.append(done))
    assert told == list(range(1, 31))


# ----------------------------------------------------------------------------------------------------------------------
# Languages
# ----------------------------------------------------------------------------------------------------------------------


def made(pairs, name="a.de"):
    return [Pair(source, target, f"{name}, line {number}", 0) for number, (source, target) in enumerate(pairs, 1)]


def test_swapped_sides_are_seen_in_files_and_languages_without_spaces():
    pairs = sentence_pairs(100)
    other = [(target, source) for source, target in sentence_pairs(50, seed=3)]
    samples = Samples()
    for pair in [*made(pairs), *made(other, "b.de"), *made(pairs[:30], "c.de")]:
        samples.add(pair)
    (note,) = samples.warnings()
    assert note.startswith("the languages seem to be swapped in b.de: its sources look like the targets of a.de")
    chinese = [("猫坐在垫子上。" * (i % 3 + 1), "the cat sat on the mat .") for i in range(40)]
    languages = Languages(made(chinese))
    assert languages.swapped(made([(target, source) for source, target in chinese]))
    assert not languages.swapped(made(chinese[:20])) and not languages.swapped([])


def test_a_target_in_the_language_of_the_source_is_told():
    pairs = sentence_pairs(400)
    told = Samples()
    for pair in made(pairs):
        told.add(pair)
    assert told.warnings() == [] and alike(made(pairs)) < 0.1
    shuffled = [(source, " ".join(reversed(source.split()))) for source, _ in pairs]
    told = Samples()
    for pair in made(shuffled):
        told.add(pair)
    assert told.warnings()[0].startswith("the target looks like the source in a.de: of the commonest words 100%")
    assert alike(made([("eins zwei", "zwei eins")])) == 0.0  # too few to say
