"""fastllm export: a run, a folder or nanoGPT's checkpoint to what transformers reads, and back."""

import logging

import pytest
import torch

from fastllm import cli
from fastllm.models import GPT, GPTConfig
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, SentencePieceTokenizer, load_tokenizer
from fastllm.train import checkpoint
from tests.models.formats.test_gpt2 import nanogpt_checkpoint
from tests.tokenizers.conftest import gpt2  # noqa: F401 - a fixture
from tests.tokenizers.test_sentencepiece import train_library
from tests.train.test_safety import full_for_safetensors

transformers = pytest.importorskip("transformers")
TEXT = "hear me speak"


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint, of a model over the characters of TEXT."""
    tokenizer = CharacterTokenizer(TEXT)
    model = GPT(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 16, bias=False))
    checkpoint.save(tmp_path / "run", "best", model, tokenizer, {})
    return tmp_path / "run", model, tokenizer


def same_logits(folder, model):
    tokens = torch.arange(8)[None] % model.config.vocab_size
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(theirs(tokens).logits, model.eval()(tokens), rtol=0, atol=1e-4)


def test_a_run(run, tmp_path, capsys):
    folder, model, tokenizer = run
    out = tmp_path / "out"
    assert cli.main(["export", str(folder), str(out)]) == 0
    assert "tokenizer characters" in capsys.readouterr().out
    same_logits(out, model)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()
    again = load_tokenizer(out)
    assert again.to_json() == tokenizer.to_json()
    # ... and what was written is a source itself, of the other format too.
    assert cli.main(["export", str(out), str(tmp_path / "ours"), "--format=fastllm"]) == 0
    assert load_tokenizer(tmp_path / "ours").to_json() == tokenizer.to_json()
    assert GPT.from_pretrained(tmp_path / "ours").config.activation == "gelu_tanh"


def test_gpt2s_tokenizer_is_autotokenizers(gpt2, tmp_path):  # noqa: F811
    model = GPT(GPTConfig(50304, 16, 1, 2, 8))  # padded, as nanoGPT pads it
    model.save_pretrained(tmp_path / "model")
    gpt2.save(tmp_path / "tokenizer")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "model"), str(out), f"--tokenizer={tmp_path / 'tokenizer'}"]
    assert cli.main(words) == 0
    same_logits(out, model)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs(TEXT)["input_ids"] == gpt2.encode(TEXT).tolist()
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.eos_token_id == config.bos_token_id == 50256
    assert load_tokenizer(out).to_json() == gpt2.to_json()


@pytest.mark.parametrize("kind", ["characters", "bytes", "gpt2"])
def test_transformers_generates_and_warns_of_nothing(kind, request, tmp_path, caplog, recwarn, monkeypatch):
    torch.manual_seed(0)
    made = {"characters": lambda: CharacterTokenizer(TEXT), "bytes": ByteTokenizer}
    tokenizer = made[kind]() if kind in made else request.getfixturevalue(kind)
    padding = 7
    model = GPT(GPTConfig(tokenizer.vocab_size + padding, 24, 1, 2, 8))
    with torch.no_grad():
        model.embedding.token.weight[-padding:] *= 30  # would be drawn each time
    out = tmp_path / "out"
    model.save_huggingface(out, tokenizer)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    words = transformers.AutoTokenizer.from_pretrained(out)
    settings, end = theirs.generation_config, tokenizer.end_of_text
    assert [settings.bos_token_id, settings.eos_token_id, settings.pad_token_id] == [end] * 3
    prompt = words("hear me", return_tensors="pt")
    length = prompt["input_ids"].shape[1]
    for options in ({"max_new_tokens": 5}, {"max_length": length + 5}, {"max_new_tokens": 5, "do_sample": True}):
        for given in (prompt, {"input_ids": prompt["input_ids"]}):
            ids = theirs.generate(**given, **options)[0]
            assert length < len(ids) <= length + 5
            assert max(ids) < tokenizer.vocab_size
    assert not [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert not [f"{warning.message}" for warning in recwarn]


def test_nanogpts_checkpoint(tmp_path, capsys):
    torch.save(nanogpt_checkpoint(True), tmp_path / "ckpt.pt")
    for form in ("huggingface", "fastllm"):
        assert cli.main(["export", str(tmp_path / "ckpt.pt"), str(tmp_path / form), f"--format={form}"]) == 0
        assert "no tokenizer: name its folder with --tokenizer" in capsys.readouterr().out
    model = GPT.from_pretrained(tmp_path / "fastllm")
    assert model.config.activation == "gelu"
    same_logits(tmp_path / "huggingface", model)


def test_the_tokenizer_of_a_run(run, tmp_path):
    folder, model, tokenizer = run
    model.save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "out"), f"--tokenizer={folder}"]
    assert cli.main(words) == 0
    assert load_tokenizer(tmp_path / "out").to_json() == tokenizer.to_json()


def test_a_tokenizer_that_transformers_read_with_others_help(tmp_path, capsys):
    tokenizer = SentencePieceTokenizer(train_library())
    GPT(GPTConfig(tokenizer.vocab_size, 8, 1, 2, 16)).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    for form, said in (("huggingface", True), ("fastllm", False)):
        assert cli.main(["export", str(tmp_path / "model"), str(tmp_path / form), f"--format={form}"]) == 0
        assert ("where sentencepiece and protobuf are installed" in capsys.readouterr().out) == said
        assert load_tokenizer(tmp_path / form).to_json() == tokenizer.to_json()


def test_what_cannot_be_exported(run, tmp_path, capsys):
    folder, _, _ = run
    ByteTokenizer().save(tmp_path / "bytes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("text")
    for words, message in (
        ([tmp_path / "none", "x"], "none does not exist"),
        ([folder, folder], "exists and is not empty"),
        ([folder, tmp_path / "x", "--format=onnx"], "'format' must be huggingface or fastllm, got 'onnx'"),
        ([tmp_path / "text.pt", tmp_path / "x", "--checkpoint=best"], "text.pt is not a run; leave it out"),
        ([folder, tmp_path / "x", "--checkpoint=first"], "has no checkpoint 'first'; it has best"),
        ([folder, tmp_path / "x", "--checkpoint=last"], "has no checkpoint 'last'; it has best"),
        (
            [folder, tmp_path / "x", f"--tokenizer={tmp_path / 'bytes'}"],
            "must have at most the model's 9 tokens, got 257",
        ),
        ([folder, tmp_path / "x", f"--tokenizer={tmp_path / 'empty'}"], "has no tokenizer: expected tokenizer.json"),
        (
            [folder, tmp_path / "x", f"--tokenizer={tmp_path / 'none'}"],
            "none' does not exist: expected a folder with a tokenizer",
        ),
        ([tmp_path / "empty", tmp_path / "x"], "config.json is missing: "),
        ([tmp_path / "text.pt", tmp_path / "x"], "text.pt is damaged, or holds more than tensors"),
    ):
        assert cli.main(["export", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_disk_that_is_full(run, tmp_path, monkeypatch, capsys):
    full_for_safetensors(monkeypatch)
    assert cli.main(["export", str(run[0]), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"fastllm: cannot write {tmp_path}/out: No space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
