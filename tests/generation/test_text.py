"""Prompts, stops and results as text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.generation import TextDecoder, generate_batch, generate_text, stream_text
from fastllm.generation.stopping import StopMatcher
from fastllm.tokenizers import CharacterTokenizer, Tokenizer
from tests.generation.models import small_gpt

LETTERS = CharacterTokenizer("abcdefghijklmnopqrstuvw")  # 23


class Bytes(Tokenizer):
    """A token a byte: most characters of the world take several."""

    kind = "bytes"
    vocab_size = 256

    def encode(self, text):
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, ids):
        return bytes(list(ids)).decode("utf-8", "replace")

    def to_json(self):
        return {}

    @classmethod
    def from_json(cls, stored):
        return cls()


class Words(Bytes):
    """A token a word; as sentencepiece does, a word has its space before it, but not the text's first one."""

    words = (" the", " cat", "s", " sat")

    def decode(self, ids):
        return "".join(self.words[i] for i in ids).removeprefix(" ")


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=5))
def test_decoder_gives_whole_characters_and_all_of_them(text, prompt):
    tokenizer = Bytes()
    decoder = TextDecoder(tokenizer, tokenizer.encode(prompt).tolist())
    pieces = [decoder.push(token) for token in tokenizer.encode(text).tolist()]
    assert "".join(pieces) + decoder.finish() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_decoder_gives_out_what_never_becomes_whole():
    decoder = TextDecoder(Bytes())
    assert decoder.push(0xE2) == ""
    assert decoder.push(0x82) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


def test_decoder_keeps_a_words_space():
    decoder = TextDecoder(Words(), [0])
    assert [decoder.push(token) for token in (1, 2, 3)] == [" cat", "s", " sat"]
    assert TextDecoder(Words()).push(1) == "cat"


@given(
    st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 3), max_size=12),
)  # fmt: skip
def test_matcher_cuts_at_the_first_stop_however_the_text_comes(text, stops, sizes):
    matcher, given_out, rest = StopMatcher(stops, ""), "", text
    for size in [*sizes, *[1] * 12]:
        piece, rest = rest[:size], rest[size:]
        if not matcher.stopped and piece:
            given_out += matcher.push(piece)
    given_out += matcher.finish()
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    if not ends:
        assert given_out == text
        return
    assert matcher.stopped
    if all(size == 1 for size in sizes):  # then the stop that is whole first ends it
        first = min(end for end, _ in ends)
        assert given_out == text[: min(start for end, start in ends if end == first)]
    assert text.startswith(given_out)


def test_text_equals_ids():
    model = small_gpt()
    prompts = ["a", "cab", "abcdefghijklmnopqrst"]
    results = generate_text(model, LETTERS, prompts, 30, seed=0)
    expected = generate_batch(model, [LETTERS.encode(prompt) for prompt in prompts], 30, seed=0)
    for i, (result, ids) in enumerate(zip(results, expected, strict=True)):
        assert result.ids == ids.ids
        assert result.text == LETTERS.decode(ids.ids)
        assert "".join(stream_text(model, LETTERS, prompts[i], 30, seed=i)) == result.text


def test_stop_strings_across_tokens():
    model = small_gpt()
    (free,) = generate_text(model, LETTERS, ["cab"], 30, seed=0)
    stop = free.text[10:13]
    (result,) = generate_text(model, LETTERS, ["cab"], 30, seed=0, stop=[stop, "never there"])
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish == "stop"
    assert "".join(stream_text(model, LETTERS, "cab", 30, seed=0, stop=stop)) == result.text
    token = free.ids[3]
    (result,) = generate_text(model, LETTERS, ["cab"], 30, seed=0, stop=[token])
    assert result.ids == free.ids[: free.ids.index(token)]


def test_characters_of_several_tokens_and_one_cut_short():
    model, cut_short = small_gpt(vocabulary=256), 0
    for seed in range(10):
        (result,) = generate_text(model, Bytes(), ["a"], 20, seed=seed, temperature=3.0)
        assert result.text == Bytes().decode(result.ids)
        assert "".join(stream_text(model, Bytes(), "a", 20, seed=seed, temperature=3.0)) == result.text
        cut_short += result.text.endswith("\ufffd")
    assert cut_short


def test_tokens_that_the_tokenizer_has_not_are_not_drawn():
    model = small_gpt(vocabulary=64)  # padded, as models are
    (result,) = generate_text(model, LETTERS, ["a"], 100, seed=0, temperature=5.0)
    assert max(result.ids) < 23
    assert len(result.text) == 100


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a", ""], {}, "'prompt' must not be empty"),
        (["Z"], {}, "characters that the vocabulary of 23 has not: 'Z'"),
        ("abc", {}, "'prompts' must be a list of texts, got one text"),
        (["a"], {"stop": [""]}, "'stop' must not have an empty string"),
        (["a"], {"stop": ["b", 99]}, r"'stop' must have ids in \[0, 23\), got 99"),
    ],
)
def test_refuses(prompts, options, message):
    with pytest.raises(UserError, match=message):
        generate_text(small_gpt(), LETTERS, prompts, 3, **options)
