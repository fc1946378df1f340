"""What AutoTokenizer makes of a tokenizer that was written for it."""

import importlib.util

import pytest
from hypothesis import HealthCheck, given, settings

from fastllm.tokenizers import CharacterTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.test_sentencepiece import train_library
from tests.tokenizers.texts import texts

transformers = pytest.importorskip("transformers")
_made: dict = {}


@pytest.fixture
def theirs(tokenizer, tmp_path_factory):
    """The same tokenizer as transformers reads it, made once."""
    if id(tokenizer) not in _made:
        folder = tmp_path_factory.mktemp("exported")
        (folder / "config.json").write_text('{"model_type": "gpt2"}')  # as beside a model of ours
        tokenizer.save_huggingface(folder)
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
    for text in ("the cat", "a  cat", " the the"):
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
