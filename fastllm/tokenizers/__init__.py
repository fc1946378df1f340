"""Text to token ids and back."""

from collections.abc import Iterable

from fastllm.errors import UserValueError
from fastllm.tokenizers.base import EncodedBatch, StreamingDecoder, Tokenizer
from fastllm.tokenizers.byte import ByteTokenizer
from fastllm.tokenizers.character import CharacterTokenizer
from fastllm.tokenizers.gpt2 import GPT2Tokenizer
from fastllm.tokenizers.loading import KINDS, NEVER_TRAINED, has_tokenizer, load_tokenizer
from fastllm.tokenizers.pair import PairTokenizer
from fastllm.tokenizers.sentencepiece import SentencePieceTokenizer
from fastllm.tokenizers.tokenizer_json import HuggingFaceTokenizer


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int | None = None, **options) -> Tokenizer:
    """Make a tokenizer of a kind from texts.

    Args:
        kind: "characters", "bytes", "sentencepiece" or "gpt2"; "bytes" and "gpt2" are ready made and read no text.
        texts: the texts, of any length, read once.
        vocab_size: how many tokens sentencepiece is to have, default 8000; for other kinds it follows from the kind.
        options: SentencePieceTokenizer.train's.

    Raises:
        UserError: kind is unknown, vocab_size is not what the kind or the texts allow, or the texts are empty.
        TypeError: texts is one str, or an option is unknown.
    """
    made = [name for name in KINDS if name not in NEVER_TRAINED]
    if kind not in made:
        raise UserValueError(f"tokenizer: 'kind' must be one of {', '.join(made)}, got '{kind}'")
    if kind == SentencePieceTokenizer.kind:
        return SentencePieceTokenizer.train(texts, 8000 if vocab_size is None else vocab_size, **options)
    if options:
        raise TypeError(f"tokenizer: kind '{kind}' has no options, got {', '.join(options)}")
    if kind == GPT2Tokenizer.kind:
        tokenizer: Tokenizer = GPT2Tokenizer.published()
    elif kind == ByteTokenizer.kind:
        tokenizer = ByteTokenizer.train(texts)
    else:
        tokenizer = CharacterTokenizer.train(texts)
    if vocab_size not in (None, tokenizer.vocab_size):
        has = tokenizer.vocab_size
        raise UserValueError(f"tokenizer: 'vocab_size' of {kind} is always {has}, got {vocab_size}; leave it out")
    return tokenizer


__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "EncodedBatch",
    "GPT2Tokenizer",
    "HuggingFaceTokenizer",
    "PairTokenizer",
    "SentencePieceTokenizer",
    "StreamingDecoder",
    "Tokenizer",
    "has_tokenizer",
    "load_tokenizer",
    "train_tokenizer",
]
