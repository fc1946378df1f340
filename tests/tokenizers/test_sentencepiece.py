"""sentencepiece: nothing lost, nothing in memory twice, the same model each time."""

import collections
import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece as library
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.tokenizers import SentencePieceTokenizer, unigram_scores
from fastllm.tokenizers.sentencepiece_training import draw, split_sentences
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.texts import texts

MODULE = "fastllm.tokenizers.sentencepiece_fast"
WORDS = TEXT.split()


def lines(count, seed=0):
    choose = random.Random(seed).choice
    return [" ".join(choose(WORDS) for _ in range(12)) + "\n" for _ in range(count)]


def train_library(**options):
    """A model as the library makes it by default: normalised, with a space in front, unknown characters lost."""
    model = io.BytesIO()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2, **options}
    library.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_writer=model, **options)
    return model.getvalue()


def test_lossless(sentencepiece):
    assert sentencepiece.lossless
    assert sentencepiece.vocab_size == 315
    assert sentencepiece.special_tokens == {"<|endoftext|>": 1}


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_ids_are_the_librarys_line_by_line(sentencepiece, text):
    processor = library.SentencePieceProcessor(model_proto=sentencepiece.files()["tokenizer.model"])
    text = text.replace("\u2581", "")  # which the library takes for a space
    expected = [id for line in text.splitlines(keepends=True) for id in processor.encode(line)]
    assert sentencepiece.encode(text).tolist() == expected


@pytest.mark.parametrize("text", ["word " * 50_000, "x" * 100_000, "\n" * 50_000, "\u2581" * 5000, " " * 100_000])
def test_long_texts(sentencepiece, text):
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=texts, copies=st.integers(1, 60))
@pytest.mark.parametrize("sentencepiece", ["bpe"], indirect=True)
def test_ids_of_words_are_the_librarys(sentencepiece, text, copies):
    processor = library.SentencePieceProcessor(model_proto=sentencepiece.files()["tokenizer.model"])
    text = f"{text} ".replace("\u2581", "") * copies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{MODULE}._WORDS_REPEAT", 0)
        assert sentencepiece.encode(text).tolist() == processor.encode(text)
        assert [ids.tolist() for ids in sentencepiece.encode_batch([text, text])] == processor.encode([text, text])


@pytest.mark.parametrize("a_thread", [1, 1000, 10**9])
@pytest.mark.parametrize("words_repeat", [0, 10**9])
def test_cuts_change_no_ids(sentencepiece, monkeypatch, a_thread, words_repeat):
    monkeypatch.setattr(f"{MODULE}._A_THREAD", a_thread)
    monkeypatch.setattr(f"{MODULE}._WORDS_REPEAT", words_repeat)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    many = lines(400)
    whole = sentencepiece.encode("".join(many)).tolist()
    assert whole == [id for line in many for id in sentencepiece.encode(line)]


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(texts, max_size=8), copies=st.integers(1, 60))
def test_ids_of_a_batch_are_the_librarys_text_by_text(sentencepiece, batch, copies):
    processor = library.SentencePieceProcessor(model_proto=sentencepiece.files()["tokenizer.model"])
    batch = [text.replace("\u2581", "") for text in batch] * copies
    assert [ids.tolist() for ids in sentencepiece.encode_batch(batch)] == processor.encode(batch)


@pytest.fixture(scope="module")
def near_tie():
    """A unigram model, and a text whose two segmentations differ by less than float32 tells after a long text."""
    model = SentencePieceTokenizer.train([TEXT], 315).files()["tokenizer.model"]
    score = library.SentencePieceProcessor(model_proto=model).get_score
    place = library.SentencePieceProcessor(model_proto=model).piece_to_id
    pair = next(pair for pair in ("th", "sp", "ou", "ar", "in") if place(pair) > 0)
    whole, parts = score(place(pair)), score(place(pair[0])) + score(place(pair[1]))
    return unigram_scores.with_scores(model, lambda one: parts - 1e-5 if one == whole else one), pair


def test_sums_that_are_rounded_are_never_of_several_texts(near_tie):
    model, pair = near_tie
    alone, among = (
        library.SentencePieceProcessor(model_proto=model).encode(text) for text in (pair, "漢" * 90 + "\n" + pair)
    )
    assert among[-len(alone) :] != alone  # what the test is about
    tokenizer = SentencePieceTokenizer(model)
    assert tokenizer.encode_batch(["漢" * 90, pair, "漢" * 90 + "\n", pair])[1].tolist() == alone
    assert tokenizer.encode_batch(["漢" * 90, pair, "漢" * 90 + "\n", pair])[3].tolist() == alone


def test_sums_of_our_models_are_exact(near_tie):
    model, pair = near_tie
    processor = library.SentencePieceProcessor(model_proto=unigram_scores.rounded(model))
    among = processor.encode("漢" * 90 + "\n" + pair)
    assert among[-len(processor.encode(pair)) :] == processor.encode(pair)
    ours = SentencePieceTokenizer.train([TEXT], 315).files()["tokenizer.model"]
    assert ours == unigram_scores.rounded(ours)


def test_rounding_changes_scores_alone(near_tie):
    model, _ = near_tie
    before, after = (
        library.SentencePieceProcessor(model_proto=content) for content in (model, unigram_scores.rounded(model))
    )
    for id in range(before.vocab_size()):
        assert before.id_to_piece(id) == after.id_to_piece(id)
        assert abs(before.get_score(id) - after.get_score(id)) <= 2**-11
        assert (before.is_byte(id), before.is_control(id)) == (after.is_byte(id), after.is_control(id))
    assert unigram_scores.with_scores(model, lambda score: score) == model


def test_exact_length():
    assert unigram_scores.exact_length([-1.5, -6.0, 0.0]) == 2**24 // 1024 // 16
    assert unigram_scores.exact_length([-1.5, -6.0001]) == 0


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_same_model_each_time(model_type):
    first, second = (
        SentencePieceTokenizer.train(iter(lines(300)), 315, model_type=model_type, max_sentences=50, seed=4)
        for _ in range(2)
    )
    assert first.files() == second.files()
    other = SentencePieceTokenizer.train(iter(lines(300)), 315, model_type=model_type, max_sentences=50, seed=5)
    assert other.files() != first.files()


def test_training_text_may_hold_anything():
    text = TEXT + "\0nul\u2581bar\u2585block\tтаб\r\n" + "very long " * 5000
    tokenizer = SentencePieceTokenizer.train([text], 315, max_sentence_length=100)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentences():
    assert list(split_sentences(["ab\n\ncdefg", "\u2581hi\u2581\0there\n", ""], 3)) == [
        "ab",
        "cde",
        "fg",
        "hi",
        "the",
        "re",
    ]
    with pytest.raises(UserError, match="a lone surrogate"):
        list(split_sentences(["\ud800"], 3))


def test_the_draw_is_even_and_bounded():
    counts = collections.Counter()
    for seed in range(2000):
        drawn = draw(iter("abcdefgh"), 3, seed)
        assert len(drawn) == 3
        counts.update(drawn)
    # Each of 8 is drawn with probability 3/8: 750 of 2000, with a deviation of 22.
    assert all(abs(count - 750) < 4 * 22 for count in counts.values())
    assert draw(iter("ab"), 3, 0) == ["a", "b"]


def test_samples_are_other_segmentations_of_the_same_text(sentencepiece):
    text = "hear me speak.\n\u2581Thou art a votary to fond desire?\n"
    sampled = [tuple(sentencepiece.sample(text, 0.2)) for _ in range(20)]
    assert len(set(sampled)) > 5
    assert all(sentencepiece.decode(ids) == text for ids in sampled)
    assert (sentencepiece.sample(text, seed=3) == sentencepiece.sample(text, seed=3)).all()
    with pytest.raises(UserError, match="'alpha' must be at least 0, got -1"):
        sentencepiece.sample(text, -1)
    for seed in (-1, 2**32 - 1):  # the library takes the latter for none
        with pytest.raises(UserError, match=rf"'seed' must be in \[0, 4294967295\), got {seed}"):
            sentencepiece.sample(text, seed=seed)
    with pytest.raises(TypeError, match=r"'seed' must be a whole number, got float 0.5"):
        sentencepiece.sample(text, seed=0.5)


def test_threads_that_sample_do_not_disturb_each_other(sentencepiece):
    """The library has a generator for each thread, which the seed is of."""
    text = "Thou art a votary to fond desire? " * 9
    want = [sentencepiece.sample(text, 0.2, seed).tolist() for seed in range(200)]
    with ThreadPoolExecutor(4) as pool:
        work = lambda _: [sentencepiece.sample(text, 0.2, seed).tolist() for seed in range(200)]  # noqa: E731
        assert list(pool.map(work, range(4))) == [want] * 4


def test_bpe_without_dropout_is_encode():
    tokenizer = SentencePieceTokenizer.train([TEXT], 315, model_type="bpe")
    assert (tokenizer.sample(TEXT, 0.0) == tokenizer.encode(TEXT)).all()


@pytest.mark.parametrize("options", [{}, {"byte_fallback": True, "vocab_size": 310}, {"add_dummy_prefix": False}])
def test_a_model_from_elsewhere(tmp_path, options):
    model = train_library(**options)
    (tmp_path / "m.model").write_bytes(model)
    ours, theirs = (
        SentencePieceTokenizer.from_file(tmp_path / "m.model"),
        library.SentencePieceProcessor(model_proto=model),
    )
    assert not ours.lossless
    assert ours.end_of_text == theirs.eos_id() == 2
    for text in ("hear me  speak", " Speak, speak.", "", "to fond\ndesire"):
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids.tolist())
        assert ours.decode_batch([ids, ids]) == theirs.decode([ids.tolist()] * 2)
        decoder = ours.streaming_decoder()
        assert "".join(decoder.push(id) for id in ids) + decoder.finish() == ours.decode(ids)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_model_whose_pieces_cross_lines(monkeypatch, model_type):
    monkeypatch.setattr(f"{MODULE}._WORDS_REPEAT", 0)
    options = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    options |= {"byte_fallback": True, "model_type": model_type, "user_defined_symbols": ["e\n\nT"]}
    model = train_library(vocab_size=330, **options)
    ours, theirs = SentencePieceTokenizer(model), library.SentencePieceProcessor(model_proto=model)
    assert ours.lossless
    text = "desire\n\nThou\u2581art\n" * 20
    assert ours.decode(ours.encode(text)) == text
    assert theirs.piece_to_id("e\n\nT") in ours.encode(text)
    text = text.replace("\u2581", "")
    assert ours.encode(text).tolist() == theirs.encode(text)


def test_a_model_whose_pieces_cross_words(monkeypatch):
    monkeypatch.setattr(f"{MODULE}._WORDS_REPEAT", 0)
    options = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    symbols = ["to▁fond", "l▁▁▁y"]
    model = train_library(vocab_size=330, byte_fallback=True, model_type="bpe", user_defined_symbols=symbols, **options)
    ours, theirs = SentencePieceTokenizer(model), library.SentencePieceProcessor(model_proto=model)
    assert ours.lossless
    text = "Thou art a votary to fond desire? all   your  \n " * 9
    assert ours.encode(text).tolist() == theirs.encode(text)
    assert set(map(theirs.piece_to_id, symbols)) <= set(ours.encode(text).tolist())


@pytest.mark.parametrize("together", [1, 7, 100])
def test_texts_are_cut_between_words(monkeypatch, together):
    tokenizer = SentencePieceTokenizer.train([TEXT, "    return 1\n" * 50], 315, model_type="bpe")
    text = "    " + TEXT + "   \n  " + "x" * 300 + " \n\n  y "
    expected = library.SentencePieceProcessor(model_proto=tokenizer.files()["tokenizer.model"]).encode(text)
    monkeypatch.setattr(f"{MODULE}._WORDS_REPEAT", 0)
    monkeypatch.setattr(f"{MODULE}._WORDS_TOGETHER", together)
    assert tokenizer.encode(text).tolist() == expected


def test_characters_that_a_model_from_elsewhere_has_not():
    tokenizer = SentencePieceTokenizer(train_library())
    with pytest.raises(
        UserError,
        match=r"which has no tokens for their bytes: '漢' \(U\+6F22\), '字' \(U\+5B57\)",
    ):
        tokenizer.encode("speak 漢字 漢")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, r"'vocab_size' must be at least 259 \(256 bytes, .*, got 0"),
        ({"vocab_size": 260}, r"'vocab_size' must be at least \d+ for this text \(256 bytes, .*, got 260"),
        ({"vocab_size": 9000}, r"'vocab_size' must be at most \d+ for this text, got 9000"),
        ({"model_type": "word"}, "'model_type' must be one of unigram, bpe, got 'word'"),
        ({"max_sentences": 0}, "must be at least 1"),
        ({"character_coverage": 2.0}, "could not be trained with"),
    ],
)
def test_training_that_cannot_work(arguments, message):
    with pytest.raises(UserError, match=message):
        SentencePieceTokenizer.train([TEXT], **{"vocab_size": 315, **arguments})


@pytest.mark.parametrize("content", [b"", b"no model", b"\0" * 100])
def test_a_damaged_model(tmp_path, content):
    (tmp_path / "m.model").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.model: this is not a sentencepiece model"):
        SentencePieceTokenizer.from_file(tmp_path / "m.model")
    with pytest.raises(UserError, match=r"cannot read .*none.model: No such file"):
        SentencePieceTokenizer.from_file(tmp_path / "none.model")
