"""Training sentencepiece models that lose no text: the library's trainer, and the lines that it is given."""

import io
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fastllm.errors import UserError
from fastllm.tokenizers import unigram_scores
from fastllm.tokenizers.base import END_OF_TEXT, utf8

# Where sentencepiece, left to itself, would cut a training text or leave a part of it out: at line ends, and at the
# two characters that it keeps for itself (a space, an unknown character) and NUL.
_SENTENCE_ENDS = re.compile("[\n\0\u2581\u2585]+")
_THREADS = 16  # a constant: the unigram model's sums, and so its pieces, depend on it


def split_sentences(texts: Iterable[str], longest: int) -> Iterator[str]:
    """Yield what sentencepiece is to be trained on: lines that are not empty, cut to at most `longest` characters."""
    for text in texts:
        utf8(text)
        for line in _SENTENCE_ENDS.split(text):
            for start in range(0, len(line), longest):
                yield line[start : start + longest]


def draw(sentences: Iterable[str], count: int, seed: int) -> list[str]:
    """Return at most count of sentences, each as likely as any other (reservoir sampling: Vitter, 1985)."""
    kept: list[str] = []
    uniform = random.Random(seed).random
    for index, sentence in enumerate(sentences):
        if index < count:
            kept.append(sentence)
        elif (place := int(uniform() * (index + 1))) < count:
            kept[place] = sentence
    return kept


def train(sentences: list[str], options: dict) -> bytes:
    """Return the model file of a lossless model; options are the trainer's.

    Raises:
        UserError: the trainer cannot do with them.
    """
    model = io.BytesIO()
    try:
        library().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, num_threads=_THREADS, minloglevel=2,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True, byte_fallback=True,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, eos_piece=END_OF_TEXT, **options,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(_explain(f"{error}", options)) from error
    content = model.getvalue()
    return unigram_scores.rounded(content) if options["model_type"] == "unigram" else content


def _explain(error: str, options: dict) -> str:
    """Say in our words what sentencepiece found wrong; it names a line of its source."""
    vocab_size = options["vocab_size"]
    if most := re.search(r"Vocabulary size too high.*<= (\d+)", error):
        return f"sentencepiece: 'vocab_size' must be at most {most[1]} for this text, got {vocab_size}"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (
            f"sentencepiece: 'vocab_size' must be at least {least[1]} for this text (256 bytes, 2 special tokens, its "
            f"characters), got {vocab_size}; a smaller character_coverage needs fewer"
        )
    return f"sentencepiece could not be trained with {options}: {' '.join(error.split())}"


def library() -> Any:
    """Return the package sentencepiece.

    Raises:
        UserError: it is missing.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise UserError("the package sentencepiece is missing; pip install 'fastllm[tokenizers]'") from error
    return sentencepiece
