"""A pair of tokenizers: ids of sentences and back, tags, files."""

import pickle

import numpy as np
import pytest

from fastllm.errors import UserError
from fastllm.tokenizers import CharacterTokenizer, PairTokenizer, SentencePieceTokenizer, load_tokenizer

SOURCE = "Das Haus ist rot. Ein Baum steht im Wald, {0} und die Katze läuft.\n" * 20
TARGET = "The house is red. A tree stands in the wood, {0} and the cat runs.\n" * 20


def side(text, **options):
    lines = [f" {line}" for line in text.splitlines()]
    return SentencePieceTokenizer.train(lines, 320, **{"model_type": "bpe", **options})


@pytest.fixture(scope="module")
def joint():
    return PairTokenizer(side(SOURCE + TARGET, control_symbols=["<2de>", "<2en>"]))


@pytest.fixture(scope="module")
def separate():
    return PairTokenizer(side(SOURCE), side(TARGET))


@pytest.mark.parametrize("kind", ["joint", "separate"])
@pytest.mark.parametrize("text", ["Das Haus", "", " x", "läuft  {0}\t", "<2en>", "das <2de> Haus", "\N{SNOWMAN}▁"])
def test_texts_come_back(kind, text, request):
    pair = request.getfixturevalue(kind)
    target = pair.encode_target(text)
    assert target.dtype == np.int64 and target[-1] == pair.end
    assert pair.decode_target([pair.start, *target]) == pair.decode_target(target) == text
    if not text.startswith("<2"):
        source = pair.encode_source(text)
        assert source[-1] == pair.source_end
        assert pair.decode_source(source) == text


def test_a_word_is_the_same_wherever_it_stands(joint):
    alone = joint.encode_source("Haus")[:-1].tolist()
    assert joint.encode_source("Das Haus")[:-1].tolist()[-len(alone) :] == alone


def test_tags_stand_in_front_only(joint):
    assert joint.tags == ("<2de>", "<2en>")
    ids = joint.encode_source("<2en> Das Haus")
    assert ids[0] == joint.source.special_tokens["<2en>"]
    assert ids[1:].tolist() == joint.encode_source("Das Haus").tolist()
    assert joint.decode_source(ids) == "<2en> Das Haus"
    assert ids[0] not in joint.encode_source("Das <2en> Haus")
    both = joint.encode_source("<2de><2en> Haus")
    assert both[:2].tolist() == [joint.source.special_tokens[tag] for tag in ("<2de>", "<2en>")]


def test_what_it_is_as_a_tokenizer(joint, separate):
    assert joint.joint and not separate.joint
    assert separate.vocab_size == separate.target.vocab_size
    assert separate.source_vocab_size == separate.source.vocab_size
    assert separate.decode(separate.encode("The house")) == "The house"
    assert [row.tolist() for row in separate.encode_batch(["The", "cat"])] == [
        separate.encode(text).tolist() for text in ("The", "cat")
    ]
    assert separate.token_bytes == separate.target.token_bytes
    assert joint.start == joint.end  # as fairseq has it


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_files_and_pickles_bring_it_back(kind, request, tmp_path):
    pair = request.getfixturevalue(kind)
    pair.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(pair))):
        assert other.to_json() == pair.to_json()
        assert other.joint == pair.joint and other.tags == pair.tags
        text = "Das Haus läuft"
        assert np.array_equal(other.encode_source(text), pair.encode_source(text))


def test_drawn_segmentations(joint):
    text = "Das Haus ist rot. Ein Baum steht im Wald"
    drawn = {tuple(joint.encode_source(text, alpha=0.1, seed=seed)) for seed in range(20)}
    assert len(drawn) > 5
    assert all(joint.decode_source(ids) == text for ids in drawn)
    for seed in (3, 4):
        again = [joint.encode_target(text, alpha=0.1, seed=seed).tolist() for _ in range(3)]
        assert again[0] == again[1] == again[2]


def test_wrong_sides(joint):
    with pytest.raises(UserError, match="'source' must have a token that ends a text; characters has none"):
        PairTokenizer(CharacterTokenizer.train(["ab"]))
    with pytest.raises(UserError, match=r"'start' must be in \[0, "):
        PairTokenizer(joint.source, None, 10**6)
    with pytest.raises(TypeError, match="'text' must be a str"):
        joint.encode_source(3)
    with pytest.raises(UserError, match="'control_symbols' must be names without commas"):
        side(SOURCE, control_symbols=["a,b"])
