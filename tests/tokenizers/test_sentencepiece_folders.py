"""Folders of other makers with a tokenizer.model, such as Llama 2's."""

import json

import pytest
import sentencepiece as library

from fastllm.errors import UserError
from fastllm.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, has_tokenizer, load_tokenizer
from tests.tokenizers import makers
from tests.tokenizers.test_sentencepiece import train_library

ROLES = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def model():
    options = {"control_symbols": ["[INST]"], "user_defined_symbols": ["<think>"], "byte_fallback": True}
    return train_library(model_type="bpe", vocab_size=340, **options)


def write(folder, model, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({**ROLES, **settings}))
    return folder


def token(content, special):
    return {"content": content, "special": special}


def test_a_folder_of_another_makers(model, tmp_path):
    added = {
        "0": token("<unk>", True),
        "1": token("<s>", True),
        "3": token("[INST]", True),
        "4": token("<think>", False),
    }
    template = "{{ bos_token }}[INST]{{ messages[0].content }}{{ eos_token }}"
    folder = write(tmp_path / "theirs", model, added_tokens_decoder=added, chat_template=template)
    assert has_tokenizer(folder)
    ours, theirs = load_tokenizer(folder), library.SentencePieceProcessor(model_proto=model)
    assert isinstance(ours, SentencePieceTokenizer)
    assert (ours.start_of_text, ours.end_of_text) == (1, 2)
    assert ours.special_tokens == {"<s>": 1, "</s>": 2, "[INST]": 3}
    text = "speak  </s>漢 <think> [INST]"
    assert ours.encode(text).tolist() == theirs.encode(text)
    ids = ours.encode_chat([{"content": "hear</s>"}])
    assert ids.tolist() == [1, 3, *theirs.encode("hear</s>"), 2]
    ours.save(tmp_path / "ours")
    ours.save_huggingface(tmp_path / "exported")
    for place in ("ours", "exported"):
        again = load_tokenizer(tmp_path / place)
        assert again.carried() == ours.carried()
        assert again.encode_chat([{"content": "hear</s>"}]).tolist() == ids.tolist()


def test_a_model_alone(model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = load_tokenizer(tmp_path)
    assert (ours.start_of_text, ours.end_of_text, ours.named_tokens) == (1, 2, {})
    with pytest.raises(UserError, match="this sentencepiece tokenizer has no chat template"):
        ours.render_chat([{"content": "x"}])


@pytest.mark.parametrize(("setting", "expected"), [(True, 1), (False, None), (None, 1)])
def test_the_token_in_front(model, tmp_path, setting, expected):
    assert load_tokenizer(write(tmp_path, model, add_bos_token=setting)).start_of_text == expected


def test_a_model_without_a_first_token(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_library(bos_id=-1))
    assert load_tokenizer(tmp_path).start_of_text is None


WRONG = [
    ({"added_tokens_decoder": {"340": token("<pad>", True)}}, "lacks the token '<pad>' .* with the id 340"),
    ({"added_tokens_decoder": {"5": token("[INST]", True)}}, r"lacks the token '\[INST\]' .* with the id 5"),
    ({"added_tokens_decoder": {"4": token("<think>", True)}}, "takes the token '<think>' for text: .* say special"),
    ({"pad_token": "<pad>"}, "has another token than '<pad>', which is 'pad_token' beside it"),
    ({"eos_token": "<s>"}, "has another token than '<s>', which is 'eos_token' beside it"),
    ({"eos_token": {"lstrip": True}}, r"tokenizer_config.json is damaged \(KeyError"),
    ({"eos_token": 7}, r"tokenizer_config.json is damaged \(TypeError"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_tokens_that_the_model_lacks_are_named(model, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(write(tmp_path, model, **settings))


def test_added_tokens_in_a_file_of_their_own(model, tmp_path):
    write(tmp_path, model)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 340}')
    with pytest.raises(UserError, match="lacks the token '<pad>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"a tiktoken file", "lacks"])
def test_tokenizer_json_is_taken_where_the_model_does_not_do(model, tmp_path, content):
    makers.write("mistral", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model if content == "lacks" else content)
    if content == "lacks":
        (tmp_path / "added_tokens.json").write_text('{"[/INST]": 4}')
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.special_tokens["[/INST]"] == 4
