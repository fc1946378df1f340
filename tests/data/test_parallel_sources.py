"""Reading pairs: lines, tables, JSON Lines and TMX, in folders and packed; what is wrong with files, in a sentence."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from fastllm.data import Corpora, FilePairs, LinePairs, PairsOf, Tagged
from fastllm.data.parallel.sources import first_apart
from fastllm.errors import UserError
from tests.pairs import numbers, sentence_pairs, write_lines, write_pairs


def texts(corpus):
    return [(pair.source, pair.target) for pair in corpus.pairs()]


def documents(corpus):
    return [pair.document for pair in corpus.pairs()]


def pack(path):
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


# ----------------------------------------------------------------------------------------------------------------------
# Lines
# ----------------------------------------------------------------------------------------------------------------------


def test_lines_of_two_files(tmp_path):
    pairs = sentence_pairs(5)
    corpus = LinePairs(*([path] for path in write_pairs(tmp_path, pairs)))
    assert texts(corpus) == pairs == texts(corpus)  # as often as asked for
    assert [pair.where for pair in corpus.pairs()][1] == f"{tmp_path}/train.de, line 2"
    assert corpus.names == [f"{tmp_path}/train.de | {tmp_path}/train.en"]
    (tmp_path / "train.de").write_bytes("\ufeff eins \r\nzwei\u00a0\r\n".encode())  # Windows, a mark, white space
    (tmp_path / "train.en").write_text("one\ntwo")  # no line end at the end
    assert texts(corpus) == [("eins", "one"), ("zwei", "two")]


def test_lines_are_only_what_line_feeds_end(tmp_path):
    """Other characters that part lines, as U+2028, stand within sentences of web text."""
    source, target = write_lines(tmp_path / "a", ["x\u2028y\x0bz\x85w", "b"]), write_lines(tmp_path / "b", ["c", "d"])
    assert texts(LinePairs([source], [target])) == [("x\u2028y\x0bz\x85w", "c"), ("b", "d")]


def test_packed_files_several_corpora_and_folders(tmp_path):
    pairs = sentence_pairs(9)
    first = [pack(path) for path in write_pairs(tmp_path, pairs[:4], "one")]
    second = write_pairs(tmp_path, pairs[4:], "two")
    corpus = LinePairs([first[0], second[0]], [first[1], second[1]])
    assert texts(corpus) == pairs and documents(corpus) == [0] * 4 + [1] * 5
    german, english = tmp_path / "german", tmp_path / "english"
    for folder, files in ((german, (first[0], second[0])), (english, (first[1], second[1]))):
        (folder / "deep").mkdir(parents=True)
        (folder / ".hidden").write_text("no")
        files[0].rename(folder / files[0].name)
        files[1].rename(folder / "deep" / files[1].name)
    assert sorted(texts(LinePairs([german], [english]))) == sorted(pairs)


def test_documents_part_where_both_sides_are_empty(tmp_path):
    source = write_lines(tmp_path / "a", ["1", "2", "", "3", "", "", "4"])
    target = write_lines(tmp_path / "b", ["1", "2", " ", "3", "", "", "4"])
    assert documents(LinePairs([source], [target])) == [0, 0, 1, 3]
    target = write_lines(tmp_path / "b", ["1", "2", "only here", "3", "", "", "4"])
    assert texts(LinePairs([source], [target]))[2] == ("", "only here")  # no document's end, but a fault


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("gap", [1, 150, 299])
def test_files_of_unequal_length(tmp_path, gap, side):
    pairs = sentence_pairs(300, shortest=2, longest=40)
    files = write_pairs(tmp_path, pairs)
    write_lines(files[side], [pair[side] for number, pair in enumerate(pairs) if number != gap - 1])
    counts = [299 if side == 0 else 300, 300 if side == 0 else 299]
    with pytest.raises(UserError) as error:
        texts(LinePairs([files[0]], [files[1]]))
    message = str(error.value)
    assert f"train.de has {counts[0]} lines and {files[1]} {counts[1]}" in message and ", a guess, " in message
    assert abs(int(message.split("apart at about line ")[1].split(":")[0]) - gap) <= 2


def test_where_files_go_apart():
    lengths = np.random.default_rng(0).integers(5, 200, 1000)
    for more in (1, 5):
        for place in (0, 400, 1000):
            longer = np.insert(lengths, [place] * more, 77)
            assert abs(first_apart(lengths, longer) - 1 - place) <= 2
            assert abs(first_apart(longer, lengths) - 1 - place) <= 2
    assert first_apart([], [3]) == first_apart([3, 4], []) == 1
    assert first_apart([30, 40], [31, 41, 5]) == 3  # at the end


@pytest.mark.parametrize("place", [40, 150, 290])
@pytest.mark.parametrize("more", [-3, -1, 1, 4])
def test_several_lines_that_one_file_lacks(place, more, tmp_path):
    pairs = numbers(300)
    left, right = [a * 3 for a, _ in pairs], [b for _, b in pairs]
    (right if more > 0 else left)[place:place] = ["an extra line of some length"] * abs(more)
    found = first_apart(list(map(len, left)), list(map(len, right)))
    assert abs(found - place) <= 6
    for name, side in (("a", left), ("b", right)):
        (tmp_path / name).write_text("\n".join(side) + "\n")
    error = rf"a has {len(left)} lines and .*b {len(right)}, .* go apart at about line {found}: '"
    with pytest.raises(UserError, match=error):
        texts(LinePairs([tmp_path / "a"], [tmp_path / "b"]))


def test_bytes_that_are_not_utf8(tmp_path):
    source, target = write_pairs(tmp_path, sentence_pairs(3))
    source.write_bytes("eins\nfünf\n".encode("latin-1") + b"drei\n")
    with pytest.raises(UserError, match=r"train.de, line 2 is not UTF-8: invalid byte 0xfc at column 2; .* iconv"):
        texts(LinePairs([source], [target]))


def test_files_that_do_not_fit(tmp_path):
    source, target = write_pairs(tmp_path, sentence_pairs(3))
    with pytest.raises(UserError, match=r"'target' must name as many files as 'source' .1., got 2"):
        LinePairs([source], [target, target])
    with pytest.raises(UserError, match="nowhere does not exist"):
        LinePairs([source], [tmp_path / "nowhere"])
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match=r"folder is a folder and .* a file"):
        LinePairs([source], [folder])
    with pytest.raises(UserError, match="has no files"):
        LinePairs([folder], [folder])
    (folder / "a.en").write_text("x\n")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match=r"the file a of .*folder has no counterpart"):
        LinePairs([folder], [other])
    (folder / "a.de").write_text("x\n")
    with pytest.raises(UserError, match=r"a.de and .*a.en differ in their last suffix only"):
        LinePairs([folder], [folder])
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b not packed")
    with pytest.raises(UserError, match=r"cannot read .*broken.gz"):
        texts(LinePairs([source], [tmp_path / "broken.gz"]))


# ----------------------------------------------------------------------------------------------------------------------
# Files with both sides
# ----------------------------------------------------------------------------------------------------------------------


def test_tables(tmp_path):
    path = write_lines(tmp_path / "a.tsv", ["eins\t one ", "", "zwei\ttwo"])
    assert texts(FilePairs([path])) == [("eins", "one"), ("zwei", "two")] and documents(FilePairs([path])) == [0, 1]
    assert texts(FilePairs([pack(path)])) == [("eins", "one"), ("zwei", "two")]
    path = write_lines(tmp_path / "b.tsv", ["eins\tone", "zwei"])
    with pytest.raises(UserError, match=r"b.tsv, line 2 must have two columns .* got 1: 'zwei'"):
        texts(FilePairs([path]))


def test_json_lines(tmp_path):
    objects = [{"source": "eins", "target": "one"}, {"source": "zwei", "target": "two", "tag": "<news>"}]
    path = write_lines(tmp_path / "a.JSONL", map(json.dumps, objects))
    assert texts(FilePairs([path])) == [("eins", "one"), ("zwei", "two")]
    assert [pair.tags for pair in FilePairs([path]).pairs()] == [(), ("<news>",)]
    path = write_lines(tmp_path / "b.ndjson", ['{"de": "eins", "en": "one"}'])
    assert texts(FilePairs([path], "de", "en")) == [("eins", "one")]
    with pytest.raises(UserError, match=r"b.ndjson, line 1 must be an object with the texts 'source' and 'target'"):
        texts(FilePairs([path]))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1, 2]", "must be an object with the texts 'source' and 'target', got '.1, 2.'"),
        ('{"source": "a", "target": 3}', "must be an object with the texts"),
        ("{'source'", "is not JSON"),
        ('{"source": "a", "target": "b", "tag": 3}', "the field 'tag' must be a string, got 3"),
    ],
)
def test_lines_that_are_no_pairs(tmp_path, line, sentence):
    path = write_lines(tmp_path / "a.jsonl", ['{"source": "a", "target": "b"}', line])
    with pytest.raises(UserError, match=f"a.jsonl, line 2:? {sentence}"):
        texts(FilePairs([path]))


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"{namespace}><header srclang="de"/><body>
  <tu><tuv xml:lang="DE"><seg>Guten
     Tag, <bpt i="1">&lt;b&gt;</bpt>Welt</seg></tuv><tuv xml:lang="en-GB"><seg>Good day</seg></tuv></tu>
  <tu><tuv xml:lang="de"><seg>nur hier</seg></tuv><tuv xml:lang="fr"><seg>ici</seg></tuv></tu>
  <tu><note>checked</note><tuv lang="en-US"><seg>hi</seg></tuv><tuv lang="en"><seg>hello</seg></tuv><tuv lang="de">
    <seg>hallo</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://www.lisa.org/tmx14"'])
def test_translation_memories(tmp_path, namespace):
    path = write_lines(tmp_path / "a.tmx", [TMX.format(namespace=namespace)])
    corpus = FilePairs([path], source_language="de", target_language="en")
    assert texts(corpus) == [("Guten Tag, <b>Welt", "Good day"), ("hallo", "hello")]
    assert [pair.where for pair in corpus.pairs()] == [f"{path}, unit 1", f"{path}, unit 3"]
    assert texts(FilePairs([path], source_language="en-US", target_language="DE")) == [("hi", "hallo")]
    assert texts(FilePairs([pack(path)], source_language="fr", target_language="de")) == [("ici", "nur hier")]


def test_what_is_wrong_with_translation_memories(tmp_path):
    path = write_lines(tmp_path / "a.tmx", [TMX.format(namespace="")])
    with pytest.raises(UserError, match="say which with --source_language and --target_language"):
        FilePairs([path], source_language="de")
    with pytest.raises(UserError, match="no unit with both 'de' and 'nl', only de, en-gb, fr, en-us, en; name others"):
        texts(FilePairs([path], source_language="de", target_language="nl"))
    write_lines(path, [TMX.format(namespace="").rsplit("</tu>", 1)[0]])
    with pytest.raises(UserError, match="is not TMX after unit 2"):
        texts(FilePairs([path], source_language="de", target_language="en"))


def test_translation_memories_are_streams(tmp_path):
    unit = '<tu><tuv xml:lang="de"><seg>{0}</seg></tuv><tuv xml:lang="en"><seg>{0}</seg></tuv></tu>'
    units = "".join(unit.format("x" * 100) for _ in range(20_000))
    path = write_lines(tmp_path / "a.tmx", [f"<tmx><body>{units}</body></tmx>"])
    tracemalloc.start()
    assert sum(1 for _ in FilePairs([path], source_language="de", target_language="en").pairs()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # all units would take 20 times as much


def test_folders_are_searched(tmp_path):
    write_lines(tmp_path / "a.tsv", ["eins\tone"])
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "deep" / "b.jsonl", ['{"source": "zwei", "target": "two"}'])
    write_lines(tmp_path / "README.md", ["no pairs"])
    assert sorted(texts(FilePairs([tmp_path]))) == [("eins", "one"), ("zwei", "two")]
    assert documents(FilePairs([tmp_path])) == [0, 1]
    with pytest.raises(UserError, match=r"'pairs' must end in .tsv, .jsonl, .ndjson, .tmx .or .gz., got .*README.md"):
        FilePairs([tmp_path / "README.md"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no files that end in"):
        FilePairs([tmp_path / "empty"])
    with pytest.raises(UserError, match="nowhere does not exist"):
        FilePairs([tmp_path / "nowhere"])


def test_corpora_in_a_row(tmp_path):
    source = write_lines(tmp_path / "a", ["1", "", "2", ""])
    corpus = Corpora([LinePairs([source], [source]), Tagged(PairsOf([(" x ", "y")], "mine"), "<news>")])
    assert texts(corpus) == [("1", "1"), ("2", "2"), ("x", "y")] and documents(corpus) == [0, 1, 2]
    assert corpus.names == [f"{source} | {source}", "mine"]
    assert [(pair.where, pair.tags) for pair in corpus.pairs()][2] == ("mine, pair 1", ("<news>",))
    twice = Tagged(Tagged(PairsOf([("x", "y")]), "<a>"), "<b>")
    assert next(twice.pairs()).tags == ("<b>", "<a>")
