"""Other makers' tokenizer.json against transformers."""

import json
import pickle
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.tokenizers import GPT2Tokenizer, HuggingFaceTokenizer, has_tokenizer, load_tokenizer
from tests.tokenizers import makers
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.texts import TRICKY, texts

transformers = pytest.importorskip("transformers")
NAMES = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "[INST]",
    "<|eot_id|>",
    "<tool_call>",
    "<|begin_of_text|>",
    "12345",
]
mixed = st.lists(st.one_of(st.sampled_from([*NAMES, *TRICKY]), texts), max_size=12).map("".join)
many = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CODE = "def f(x):\n    return x+1234567  # 漢字 😀\n\n\n\t\tif  x   ==  10 :\r\n"


@pytest.fixture(scope="module", params=makers.STYLES)
def pair(request, tmp_path_factory):
    """Ours and transformers' of the same files."""
    folder = makers.write(request.param, tmp_path_factory.mktemp(request.param))
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_the_kind_and_its_tokens(pair):
    ours, theirs = pair
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.vocab_size == len(theirs)
    assert ours.token_names() == theirs.get_vocab()
    assert ours.end_of_text == theirs.eos_token_id
    assert set(ours.special_tokens.values()) == set(theirs.all_special_ids) | set(ours.special_tokens.values())
    first = theirs("a")["input_ids"][0]
    assert ours.start_of_text == (theirs.bos_token_id if first == theirs.bos_token_id else None)


@many
@given(text=mixed)
def test_ids_are_theirs(pair, text):
    ours, theirs = pair
    plain = ours.encode(text).tolist()
    assert plain == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(plain) & set(ours.special_tokens.values())
    ids = ours.encode(text, allow_special=True).tolist()
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert [one.tolist() for one in ours.encode_batch([text, "a"])] == [plain, ours.encode("a").tolist()]


@many
@given(data=st.data())
def test_all_ids_decode_alike_in_every_way(pair, data):
    ours, _ = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=20))
    decoder = ours.streaming_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == ours.decode(ids)
    assert ours.decode_batch([ids, []]) == [ours.decode(ids), ""]


@pytest.mark.parametrize("text", [CODE, TEXT, " a", "  a", "a  ", "", "\n\n"])
def test_texts_come_back(pair, text):
    ours, theirs = pair
    ids = ours.encode(text).tolist()
    same = theirs.decode(ids) == text
    assert (ours.decode(ids) == text) is same
    assert same or (text[:1] == " " and ours.drops_first_space)  # some put no space in front of one


def test_stored_and_loaded(pair, tmp_path):
    ours, theirs = pair
    ours.save(tmp_path / "saved")
    ours.save_huggingface(tmp_path / "exported", 4000)
    content = ours.files()["tokenizer.json"]
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == content
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == content
    assert has_tokenizer(tmp_path / "saved")
    exported = load_tokenizer(tmp_path / "exported")
    for again in (load_tokenizer(tmp_path / "saved"), exported, pickle.loads(pickle.dumps(ours))):
        assert again.to_json() == ours.to_json()
        assert again.carried() == ours.carried()
        assert again.encode(CODE).tolist() == ours.encode(CODE).tolist()
    (tmp_path / "exported" / "config.json").write_text('{"model_type": "llama"}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert auto.model_max_length == 4000
    assert (auto.bos_token, auto.eos_token, auto.pad_token) == (theirs.bos_token, theirs.eos_token, theirs.pad_token)
    for text in (CODE, TEXT, "a<|im_end|> b </s>c"):
        assert auto(text)["input_ids"] == theirs(text)["input_ids"]


def test_what_transformers_saves_over_it_is_read(pair, tmp_path):
    ours, _ = pair
    ours.save_huggingface(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<more>"])
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    text = f"{CODE}<more> x"
    assert again.added_tokens["<more>"] == ours.vocab_size
    assert again.encode(text, allow_special=True).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert again.start_of_text == ours.start_of_text


def test_a_damaged_file_is_named(pair, tmp_path):
    ours, _ = pair
    ours.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"tokenizer.json is damaged: its SHA-256 is not the one"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("style", ["qwen", "mistral"])
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
@pytest.mark.parametrize("special", [True, False])
def test_flags_of_added_tokens(tmp_path, style, flag, special):
    theirs = transformers.AutoTokenizer.from_pretrained(makers.write(style, tmp_path / "first"))
    theirs.add_tokens([transformers.AddedToken("<mask>", **{flag: True})], special_tokens=special)
    theirs.save_pretrained(tmp_path / "second")
    ours = load_tokenizer(tmp_path / "second")
    for text in ("a <mask> b", "a<mask>b", " <mask>", "<mask>  \n", "x <mask><mask> y"):
        assert ours.encode(text, allow_special=True).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("setting", "expected"), [(True, "<|im_start|>"), (False, None), (None, None)])
def test_the_token_in_front_that_the_settings_name(tmp_path, setting, expected):
    ours = load_tokenizer(makers.write("smollm", tmp_path, add_bos_token=setting))
    assert ours.start_of_text == (None if expected is None else ours.special_tokens[expected])


def test_settings_that_take_the_token_in_front_away(tmp_path):
    ours = load_tokenizer(makers.write("llama3", tmp_path, add_bos_token=False))
    assert ours.start_of_text is None
    ours.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").start_of_text is None


def test_a_role_whose_token_is_in_no_file_comes_last(tmp_path):
    folder = makers.write("qwen", tmp_path, pad_token="[PAD]")
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.special_tokens["[PAD]"] == theirs.pad_token_id == ours.vocab_size - 1
    assert ours.encode("a[PAD]", allow_special=True)[-1] == ours.vocab_size - 1


def change(path, **changes):
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **changes}), encoding="utf-8")
    return stored


def test_plain_text_never_becomes_a_special_token(tmp_path):
    """A vocabulary whose merges make the name of one."""
    path = makers.write("smollm", tmp_path) / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    vocab = stored["model"]["vocab"]
    merged = next("".join(pair) for pair in stored["model"]["merges"][5:])
    token = {**stored["added_tokens"][0], "content": merged, "id": vocab[merged]}
    change(path, added_tokens=[*stored["added_tokens"], token])
    ours = load_tokenizer(tmp_path)
    assert ours.special_tokens[merged] not in ours.encode(merged)
    assert ours.encode(merged, allow_special=True).tolist() == [vocab[merged]]
    change(path, added_tokens=[{**token, "content": "a", "id": vocab["a"]}])
    with pytest.raises(UserError, match="the special token 'a' must be one that plain text does not become"):
        load_tokenizer(tmp_path)


def test_characters_whose_bytes_are_not_in_the_vocabulary(tmp_path):
    """The library leaves them out without a word."""
    path = makers.write("smollm", tmp_path) / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    vocab = {piece: id for piece, id in stored["model"]["vocab"].items() if piece not in ("\u0104", "\u00f1")}
    vocab = {piece: id for id, piece in enumerate(vocab)}
    merges = [pair for pair in stored["model"]["merges"] if all(part in vocab for part in [*pair, "".join(pair)])]
    tokens = [{**token, "id": len(vocab) + index} for index, token in enumerate(stored["added_tokens"])]
    change(path, model={**stored["model"], "vocab": vocab, "merges": merges}, added_tokens=tokens)
    ours = load_tokenizer(tmp_path)
    message = r"not in the vocabulary of \d+ tokens, which lacks a byte of them too: '\\x04' \(U\+0004\), '\\U00050000'"
    for encode in (
        ours.encode,
        lambda text: ours.encode(text, allow_special=True),
        lambda text: ours.encode_batch([text]),
    ):
        with pytest.raises(UserError, match=message):
            encode("a\x04b\U00050000\x04")
    assert ours.decode(ours.encode("ab\U0001f600")) == "ab\U0001f600"


@pytest.mark.parametrize(
    ("style", "changes", "message"),
    [
        ("qwen", {"model": {"type": "WordPiece", "vocab": {}, "merges": []}}, "'model.type' must be BPE, got WordP"),
        ("qwen", {"model": {"type": "Unigram", "vocab": []}}, "'model.type' must be BPE, got Unigram"),
        ("qwen", {"model": None}, "tokenizer.json is damaged"),
        ("qwen", {"model": {"dropout": 0.1}}, "'model.dropout' must be None, got 0.1"),
        ("qwen", {"model": {"continuing_subword_prefix": "##"}}, "'model.continuing_subword_prefix' must be empty"),
        ("qwen", {"model": {"end_of_word_suffix": "</w>"}}, "'model.end_of_word_suffix' must be empty, got </w>"),
        ("qwen", {"normalizer": {"type": "Lowercase"}}, "'normalizer' must be made of NFC, .*, Replace, got Lowercase"),
        ("qwen", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}},
         "'normalizer' must be made of NFC, .*, got Strip"),
        ("qwen", {"pre_tokenizer": {"type": "Whitespace"}}, "'pre_tokenizer' must be made of .*, got Whitespace"),
        ("qwen", {"pre_tokenizer": None}, "expected a ByteLevel pre-tokenizer and decoder, or"),
        ("qwen", {"pre_tokenizer": {"type": "Split", "behavior": "Removed"}}, "'behavior' of Split must keep"),
        ("qwen", {"decoder": None}, "expected a ByteLevel pre-tokenizer and decoder, or .*, got the decoder None"),
        ("qwen", {"decoder": {"type": "WordPiece"}}, "'decoder' must be made of ByteFallback, .*, got WordPiece"),
        ("qwen", {"post_processor": {"type": "BertProcessing"}}, "'post_processor' must be made of .*, got BertP"),
        ("llama2", {"model": {"byte_fallback": False}}, "expected .* 'model.byte_fallback', .*, got the decoder Repl"),
        ("llama2", {"decoder": {"type": "Strip", "content": " ", "start": 2}}, "'start' of a decoder Strip must be 1"),
        ("qwen", {"added_tokens": [{"content": "x"}]}, "tokenizer.json is damaged"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path, style, changes, message):
    path = makers.write(style, tmp_path) / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if changes.get("model"):
        changes = {"model": {**model, **changes["model"]}}
    change(path, **changes)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_token_that_the_settings_add_and_the_file_lacks(tmp_path):
    makers.write("qwen", tmp_path, added_tokens_decoder={"999": {"content": "<more>"}})
    with pytest.raises(UserError, match=r"tokenizer.json lacks the token '<more>' that tokenizer_config.json adds"):
        load_tokenizer(tmp_path)


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    makers.write("qwen", tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers is missing; pip install 'fastllm\[tokenizers\]'"):
        load_tokenizer(tmp_path)


def test_gpt2s_own_kind_is_chosen_where_it_fits(gpt2, tmp_path):
    gpt2.save_huggingface(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), GPT2Tokenizer)
    stored = change(tmp_path / "tokenizer.json", normalizer={"type": "NFC"})
    assert isinstance(load_tokenizer(tmp_path), HuggingFaceTokenizer)
    steps = HuggingFaceTokenizer(json.dumps(stored).encode(), {"eos_token": "<|endoftext|>"})
    assert steps.encode(CODE).tolist() == gpt2.encode(CODE).tolist()
