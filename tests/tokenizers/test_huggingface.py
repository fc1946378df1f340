"""What AutoTokenizer makes of a tokenizer that was written for it."""

import copy
import importlib.util
import json

import pytest
from hypothesis import HealthCheck, given, settings

from fastllm.errors import UserError
from fastllm.tokenizers import (
    CharacterTokenizer,
    GPT2Tokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.test_sentencepiece import train_library
from tests.tokenizers.texts import texts

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
_made: dict = {}


@pytest.fixture
def theirs(tokenizer, tmp_path_factory):
    """The same tokenizer as transformers reads it, made once."""
    if id(tokenizer) not in _made:
        folder = tmp_path_factory.mktemp("exported")
        (folder / "config.json").write_text('{"model_type": "gpt2"}')  # as beside a model of ours
        tokenizer.save_huggingface(folder, 16)
        assert load_tokenizer(folder).to_json() == tokenizer.to_json()
        _made[id(tokenizer)] = transformers.AutoTokenizer.from_pretrained(folder), tokenizer
    return _made[id(tokenizer)][0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts)
def test_same_ids_and_texts(tokenizer, theirs, text):
    if isinstance(tokenizer, SentencePieceTokenizer):
        text = text.replace("\u2581", "")  # theirs takes it for a space, as sentencepiece itself does
    if isinstance(tokenizer, CharacterTokenizer):
        text = "".join(character for character in text if character in TEXT)
    ids = tokenizer.encode(text, allow_special=True).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
    # What a user wrote is plain text, and no token that it names.
    plain = tokenizer.encode(text).tolist()
    assert theirs(text, split_special_tokens=True)["input_ids"] == plain
    assert not set(plain) & set(tokenizer.special_tokens.values())


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_names_of_tokens_in_the_texts_that_were_learnt(tmp_path, model_type):
    """Pieces are parts of such names then: where theirs cuts a name, no piece may be cut."""
    learnt = "<|endoftext <0x09 0x0A> <unk |endoftext|> x|> <|end text|> unk> <u <0x\n" * 50
    ours = SentencePieceTokenizer.train([learnt], 279, model_type=model_type)
    ours.save_huggingface(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    names = ["<|endoftext|>", "<0x0A>", "<unk>", "<0xFF", "<0x0Ax>"]
    for name in [*names, *(f"a{name}<|endof{name}" for name in names), learnt]:
        assert theirs(name, split_special_tokens=True)["input_ids"] == ours.encode(name).tolist(), name


def test_texts_are_cut_to_what_the_model_takes(tokenizer, theirs):
    assert theirs.model_max_length == 16
    assert theirs(TEXT, truncation=True)["input_ids"] == tokenizer.encode(TEXT)[:16].tolist()


def test_what_transformers_saves_comes_back(tokenizer, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return  # the file is theirs then: test_tokenizer_json.py
    assert again.to_json() == tokenizer.to_json()
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    # ... and over what was exported, too.
    again.save_huggingface(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).to_json() == tokenizer.to_json()


def test_a_changed_tokenizer_is_not_taken_for_the_one_before(tokenizer, theirs, tmp_path):
    if isinstance(tokenizer, GPT2Tokenizer | HuggingFaceTokenizer):
        return  # these have added tokens themselves: test_gpt2.py, test_tokenizer_json.py
    tokenizer.save_huggingface(tmp_path / "over")
    more = copy.deepcopy(theirs)
    more.add_special_tokens({"pad_token": "<pad>"})
    for folder in (tmp_path / "new", tmp_path / "over"):
        more.save_pretrained(folder)
        with pytest.raises(UserError, match=r"tokenizer.json has another vocabulary, in which '<pad>' is added"):
            load_tokenizer(folder)
    lower = copy.deepcopy(theirs)
    lower.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    lower.save_pretrained(tmp_path / "lower")
    if tokenizer.huggingface().get("normalizer"):
        with pytest.raises(
            UserError, match=r"tokenizer.json has another 'normalizer': a sentencepiece tokenizer cannot"
        ):
            load_tokenizer(tmp_path / "lower")
    stored = json.loads((tmp_path / "over" / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "over" / "tokenizer.json").write_text(json.dumps({**stored, "model": []}))
    with pytest.raises(UserError, match=r"tokenizer.json is damaged \(TypeError"):
        load_tokenizer(tmp_path / "over")


def test_the_end_of_text(tokenizer, theirs):
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocab_size
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()


def test_a_model_that_only_sentencepiece_follows(tmp_path):
    """Transformers reads sentencepiece's own file where it has protobuf; without, it gives none, not an empty one."""
    ours = SentencePieceTokenizer(train_library())
    ours.save_huggingface(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    if not (importlib.util.find_spec("google") and importlib.util.find_spec("google.protobuf")):
        with pytest.raises((ValueError, OSError)):
            transformers.AutoTokenizer.from_pretrained(tmp_path)
        return
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").to_json() == ours.to_json()
    for text in ("the cat", "a  cat", " the the"):
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
