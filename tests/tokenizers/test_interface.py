"""What every kind of tokenizer promises."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError, describe
from fastllm.tokenizers import KINDS, NEVER_TRAINED, ByteTokenizer, CharacterTokenizer, load_tokenizer, train_tokenizer
from fastllm.tokenizers.base import EXPORTED_FILE, FEW, joined
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.texts import texts

# A fixture of the whole session is as good for the thousandth example as for the first.
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(text=texts)
def test_every_text_comes_back(tokenizer, text):
    if isinstance(tokenizer, CharacterTokenizer):
        tokenizer = CharacterTokenizer(text + "a")
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert not set(ids.tolist()) & set(tokenizer.special_tokens.values())


@many
@given(data=st.data())
def test_streams_give_what_decode_gives(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    decoder = tokenizer.streaming_decoder()
    pushed = [decoder.push(id) for id in ids]
    assert "".join(pushed) + decoder.finish() == tokenizer.decode(ids)


@many
@given(data=st.data())
def test_batches_of_all_ids_decode_as_each_alone(tokenizer, data):
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=9)
    batch = data.draw(st.lists(ids, max_size=6))
    expected = [tokenizer.decode(ids) for ids in batch]
    assert tokenizer.decode_batch(batch) == expected
    assert tokenizer.decode_batch(map(np.array, batch)) == expected
    assert tokenizer.decode_batch(joined([np.array(ids, dtype=np.int64) for ids in batch])) == expected


def test_many_ids_decode_as_few(tokenizer):
    """Few are put together one by one, many by arrays."""
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 1000)
    decoder = tokenizer.streaming_decoder()
    expected = "".join(map(decoder.push, ids.tolist())) + decoder.finish()
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == expected
    few = [tokenizer.decode(ids[:count]) for count in range(FEW - 2, FEW + 3)]
    assert few == tokenizer.decode_batch([ids[:count] for count in range(FEW - 2, FEW + 3)])


def test_a_stream_never_gives_half_a_character(tokenizer):
    text = "café speak" if isinstance(tokenizer, CharacterTokenizer) else "☕ 漢字 café\u2581 👩\u200d💻 speak"
    decoder, seen = tokenizer.streaming_decoder(), ""
    for id in tokenizer.encode(text):
        seen += decoder.push(id)
        assert text.startswith(seen)
    assert seen == text
    assert decoder.finish() == ""


@many
@given(batch=st.lists(texts, max_size=6))
def test_batches_of_all_texts_equal_single_texts(tokenizer, batch):
    if isinstance(tokenizer, CharacterTokenizer):
        tokenizer = CharacterTokenizer("".join(batch) + "a")
    assert [ids.tolist() for ids in tokenizer.encode_batch(batch)] == [
        tokenizer.encode(text).tolist() for text in batch
    ]


def test_batches_equal_single_texts(tokenizer):
    lines = [*TEXT.splitlines(keepends=True) * 30, ""]
    batch = tokenizer.encode_batch(lines)
    assert all((ids == tokenizer.encode(line)).all() for ids, line in zip(batch, lines, strict=True))
    assert tokenizer.decode_batch(batch) == lines
    assert batch.ids.dtype == np.int64
    assert (batch.ids == np.concatenate(list(batch))).all()
    bare = [line.rstrip("\n") for line in lines]  # whose ends are not at line ends
    assert [ids.tolist() for ids in tokenizer.encode_batch(bare)] == [tokenizer.encode(line).tolist() for line in bare]
    assert [ids.tolist() for ids in batch[1:3]] == [tokenizer.encode(line).tolist() for line in lines[1:3]]
    assert batch[-1].size == 0
    assert len(batch) == len(lines)
    with pytest.raises(IndexError):
        batch[len(lines)]
    assert len(tokenizer.encode_batch([])) == 0
    assert batch.astype(np.dtype("<u2"))[0].tolist() == batch[0].tolist()


def test_special_tokens_only_when_asked(tokenizer):
    text = "speak<|endoftext|><|endoftext|>hear"
    if tokenizer.end_of_text is None:
        assert tokenizer.special_tokens == {}
        return
    end = tokenizer.end_of_text
    assert tokenizer.special_tokens["<|endoftext|>"] == end
    assert end not in tokenizer.encode(text)
    ids = tokenizer.encode(text, allow_special=True)
    expected = [*tokenizer.encode("speak"), end, end, *tokenizer.encode("hear")]
    assert ids.tolist() == expected
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["tokenizer.json", EXPORTED_FILE])
def test_stored_and_loaded(tokenizer, tmp_path, name):
    tokenizer.save(tmp_path, name)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.encode(TEXT) == tokenizer.encode(TEXT)).all()


def test_a_process_can_be_given_one(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.encode(TEXT) == tokenizer.encode(TEXT)).all()


@pytest.mark.parametrize("length", [0, 1000])
@pytest.mark.parametrize("wrong", [-1, "first", 10**6, 10**12])
def test_ids_outside_the_vocabulary(tokenizer, wrong, length):
    ids = [*[0] * length, tokenizer.vocab_size if wrong == "first" else wrong]
    with pytest.raises(UserError, match=rf"ids must be in \[0, {tokenizer.vocab_size}\), got {min(ids)} to {max(ids)}"):
        tokenizer.decode(ids)
    with pytest.raises(UserError, match="ids must be in"):
        tokenizer.decode_batch([[0], np.array(ids)])
    with pytest.raises(UserError, match="ids must be in"):
        tokenizer.streaming_decoder().push(min(ids) or max(ids))


def test_lone_surrogates(tokenizer):
    if isinstance(tokenizer, CharacterTokenizer):
        return
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"a lone surrogate, U\+D83D at position 2"):
            encode("ab\ud83d")


@pytest.mark.parametrize("wrong", [3, None, b"x", ["x"], 1.5])
def test_what_is_no_text(tokenizer, wrong):
    got = re.escape(describe(wrong))
    for allow_special in (False, True):
        with pytest.raises(TypeError, match=f"encode: 'text' must be a str, got {got}"):
            tokenizer.encode(wrong, allow_special=allow_special)
    for count in (0, 1, 5000):  # few and many take different ways
        with pytest.raises(
            TypeError, match=f"encode_batch: 'texts' must be a list of str, got {got} at position {count}"
        ):
            tokenizer.encode_batch([*["speak"] * count, wrong])


@pytest.mark.parametrize("wrong", ["abc", b"abc", 3, None])
def test_what_are_no_texts(tokenizer, wrong):
    """The characters of one text would be three."""
    with pytest.raises(
        TypeError, match=f"encode_batch: 'texts' must be a list of str, got {re.escape(describe(wrong))}"
    ):
        tokenizer.encode_batch(wrong)


@pytest.mark.parametrize("wrong", ["abc", "12", 3, None, [1.0], ["1"], [None], [[1]], np.array([1.0]), np.array([[1]])])
def test_what_are_no_ids(tokenizer, wrong):
    if not isinstance(wrong, int | None):
        many = wrong * 200 if isinstance(wrong, str | list) else np.repeat(wrong, 200, axis=0)
        with pytest.raises(TypeError, match="decode: 'ids' must be a sequence of whole numbers, got "):
            tokenizer.decode(many)
    with pytest.raises(
        TypeError, match=f"decode: 'ids' must be a sequence of whole numbers, got {re.escape(describe(wrong))}"
    ):
        tokenizer.decode(wrong)
    nested = np.ndim(wrong) == 2  # of which a batch may be
    for batch in ([wrong], [[0], wrong], *([] if nested else [wrong])):
        with pytest.raises(TypeError, match="decode_batch: 'batch' must be sequences of whole numbers, got "):
            tokenizer.decode_batch(batch)
    if not isinstance(wrong, int):
        with pytest.raises(TypeError, match=f"push: 'id' must be a whole number, got {re.escape(describe(wrong))}"):
            tokenizer.streaming_decoder().push(wrong)


def test_every_kind_of_whole_number_is_an_id(tokenizer):
    text = "speak"
    ids = tokenizer.encode(text)
    for same in (ids.astype(np.uint16), ids.tolist(), tuple(ids), list(ids), torch.from_numpy(ids), range(0)):
        assert tokenizer.decode(same) == (text if len(same) else "")
        assert tokenizer.decode_batch([same, []]) == [text if len(same) else "", ""]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEVER_TRAINED])
def test_training_by_name(kind, request):
    if kind == "gpt2":
        request.getfixturevalue("gpt2")
    options = {"vocab_size": 320, "model_type": "bpe"} if kind == "sentencepiece" else {}
    tokenizer = train_tokenizer(kind, iter([TEXT, "Speak."]), **options)
    assert tokenizer.kind == kind
    assert tokenizer.decode(tokenizer.encode("Speak.\n")) == "Speak.\n"
    with pytest.raises(TypeError, match=r"nonsense"):
        train_tokenizer(kind, [TEXT], nonsense=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("words", ["a"]), "'kind' must be one of characters, bytes, sentencepiece, gpt2, got 'words'"),
        (("characters", ["ab"], 9), "'vocab_size' of characters is always 2, got 9; leave it out"),
        (("characters", []), "the texts have no character"),
        (("characters", ["", ""]), "the texts have no character"),
        (("sentencepiece", ["\n", "", "\u2581"]), "the training texts are empty"),
    ],
)
def test_training_that_cannot_work(arguments, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(*arguments)


@pytest.mark.parametrize("kind", ["characters", "bytes", "sentencepiece"])
def test_one_text_is_no_iterable_of_texts(kind):
    with pytest.raises(TypeError, match="'texts' must be an iterable of texts, got a str; put it in a list"):
        train_tokenizer(kind, "abc")


@pytest.mark.parametrize("kind", ["characters", "sentencepiece"])
@pytest.mark.parametrize("wrong", [3, None, b"abc", [3], [b"abc"]])
def test_texts_that_are_none(kind, wrong):
    with pytest.raises(TypeError, match=r"train: 'texts' must be an iterable of texts, got (int 3|None|bytes b'abc')"):
        train_tokenizer(kind, wrong)


@pytest.mark.parametrize("name", ["vocab_size", "max_sentences", "max_sentence_length", "character_coverage"])
def test_options_of_wrong_types(name):
    with pytest.raises(TypeError, match=f"sentencepiece: '{name}' must be a (whole )?number, got str 'a'"):
        train_tokenizer("sentencepiece", ["abc"], **{name: "a"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no tokenizer: expected tokenizer.json"),
        (b"{", "tokenizer.json is damaged: it is not JSON"),
        (b"\xff", "tokenizer.json is damaged: it is not JSON"),
        (b"[]", "tokenizer.json is damaged: expected an object, got list"),
        (b'{"kind": ["bytes"]}', r"'kind' must be one of characters, .*, got \['bytes'\]"),
        (b'{"kind": "words"}', "'kind' must be one of characters, .*, got 'words'"),
        (b'{"kind": "characters"}', "'characters' must be a text that is not empty"),
        (b'{"kind": "characters", "characters": 7}', "'characters' must be a text that is not empty"),
        (b'{"kind": "sentencepiece"}', "tokenizer.json is damaged: a part of the sentencepiece tokenizer is missing"),
        (b'{"kind": "sentencepiece", "sha256": "0"}', r"cannot read .*tokenizer.model: No such file"),
        (
            b'{"kind": "gpt2", "sha256": []}',
            "tokenizer.json is damaged: a part of the gpt2 tokenizer is missing or wrong",
        ),
    ],
)
def test_folders_without_a_tokenizer(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for name in tokenizer.files():
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name} is damaged: (its SHA-256 is not the one|it is not JSON)"):
            load_tokenizer(tmp_path)
        (tmp_path / name).write_bytes(content)


@given(st.text(alphabet=st.characters(), min_size=1))
def test_characters_round_trip_with_surrogates(text):
    tokenizer = CharacterTokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.characters == "".join(sorted(set(text)))
    stored = json.loads(json.dumps(tokenizer.to_json(), ensure_ascii=False).encode())
    assert CharacterTokenizer.from_json(stored, None).characters == tokenizer.characters
    decoder = tokenizer.streaming_decoder()
    assert "".join(decoder.push(id) for id in tokenizer.encode(text)) + decoder.finish() == text


def test_unknown_characters_are_shown():
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\), '\\n' \(U\+000A\), the first at position 2"):
        CharacterTokenizer("abc").encode("abé\n")


def test_bytes_are_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode("é\0").tolist() == [0xC3, 0xA9, 0]
    assert tokenizer.decode([0xC3, 256, 0xA9]) == "\ufffd<|endoftext|>\ufffd"
