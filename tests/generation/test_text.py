"""Prompts, stops and results as text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.generation import (
    beam_search_batch,
    generate,
    generate_batch,
    generate_text,
    iterate_texts,
    stream_text,
)
from fastllm.generation.stopping import StopMatcher
from fastllm.models import GPT
from fastllm.tokenizers import ByteTokenizer, CharacterTokenizer, SentencePieceTokenizer
from tests.generation.models import small_gpt

LETTERS = CharacterTokenizer("abcdefghijklmnopqrstuvw")  # 23


BYTES = ByteTokenizer()  # most characters of the world take several


def test_a_continuation_keeps_its_first_space():
    """As in sentencepiece's usual models, where a text's first word has a space that is not the text's."""
    pieces = sentencepiece_with_a_space_in_front()
    model = small_gpt(vocabulary=pieces.vocab_size)
    (result,) = generate_text(model, pieces, ["the cat"], 12, seed=0)
    prompt = pieces.encode("the cat").tolist()
    assert "the cat" + result.text == pieces.decode(prompt + result.ids)
    assert "".join(stream_text(model, pieces, "the cat", 12, seed=0)) == result.text


def sentencepiece_with_a_space_in_front():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 20), model_writer=model, vocab_size=20, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


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


@pytest.mark.parametrize("seed", [7, [3, 1, 4], None])
def test_texts_come_batch_by_batch_and_the_same(seed):
    model, prompts = small_gpt(), ["a", "cab", "abcdefghijklmnopqrst"]
    torch.manual_seed(0)
    expected = generate_text(model, LETTERS, prompts, 30, seed=seed, stop="w")
    for size in (1, 2, 9):
        torch.manual_seed(0)
        texts = iterate_texts(model, LETTERS, prompts, 30, seed=seed, stop="w", batch_size=size)
        assert list(texts) == expected
        torch.manual_seed(0)
        assert generate_text(model, LETTERS, prompts, 30, seed=seed, stop="w", batch_size=size) == expected


def test_what_is_wrong_is_told_before_the_first_text():
    for prompts, options in [
        (["a", "Z"], {}),
        (["a"], {"batch_size": 0}),
        (["a"], {"stop": ""}),
        (["a"], {"top_k": 0}),
    ]:
        with pytest.raises(UserError):
            iterate_texts(small_gpt(), LETTERS, prompts, 3, **options)


def test_a_batch_is_made_when_it_is_asked_for(monkeypatch):
    model, rooms, new_cache = small_gpt(), [], GPT.new_cache
    monkeypatch.setattr(
        GPT, "new_cache", lambda self, batch, *size: rooms.append(batch) or new_cache(self, batch, *size)
    )
    texts = iterate_texts(model, LETTERS, ["a"] * 5, 3, seed=0, batch_size=2)
    assert rooms == []
    next(texts)
    next(texts)
    assert rooms == [2]
    assert len(list(texts)) == 3
    assert rooms == [2, 2, 1]


def test_stop_strings_across_tokens():
    model = small_gpt()
    (free,) = generate_text(model, LETTERS, ["cab"], 30, seed=0)
    stop = free.text[10:13]
    (result,) = generate_text(model, LETTERS, ["cab"], 30, seed=0, stop=[stop, "never there"])
    assert result.text == free.text[: free.text.index(stop)]
    assert result.finish == "stop"
    assert "".join(stream_text(model, LETTERS, "cab", 30, seed=0, stop=stop)) == result.text
    token = free.ids[3]
    assert generate_text(model, LETTERS, ["cab"], 30, seed=0, stop=token)[0].ids == free.ids[: free.ids.index(token)]
    (result,) = generate_text(model, LETTERS, ["cab"], 30, seed=0, stop=[token])
    assert result.ids == free.ids[: free.ids.index(token)]


def test_an_iterator_is_as_good_as_a_list():
    """Whatever takes several things reads them once."""
    model, ids = small_gpt(), LETTERS.encode("cab").tolist()
    (free,) = generate_text(model, LETTERS, ["cab"], 30, seed=0)
    stops = [free.text[10:13], free.ids[20]]
    expected = generate_text(model, LETTERS, ["cab", "a"], 30, seed=[0, 1], stop=stops)
    assert generate_text(model, LETTERS, iter(["cab", "a"]), 30, seed=iter([0, 1]), stop=iter(stops)) == expected
    assert "".join(stream_text(model, LETTERS, "cab", 30, seed=0, stop=iter(stops))) == expected[0].text
    assert list(iterate_texts(model, LETTERS, iter(["cab", "a"]), 30, seed=[0, 1], stop=iter(stops))) == expected
    token = free.ids[3]
    assert list(generate(model, ids, 30, seed=0, stop=iter([token]))) == free.ids[: free.ids.index(token)]
    assert generate_batch(model, iter([ids, ids]), 9, seed=iter([1, 2]), stop=iter([token])) == generate_batch(
        model, [ids, ids], 9, seed=[1, 2], stop=[token]
    )
    assert beam_search_batch(model, iter([ids, ids]), 5, stop=iter([token])) == beam_search_batch(
        model, [ids, ids], 5, stop=[token]
    )


def test_texts_end_at_the_token_between_documents():
    """... as the command's do; its name is in no text, where a stop string could find it."""
    model = small_gpt(vocabulary=BYTES.vocab_size)
    with torch.no_grad():
        model.norm.weight.fill_(0.0)  # every token as likely as any other: one in 257 ends the text
    ended = 0
    for seed in range(3):
        (result,) = generate_text(model, BYTES, ["a"], 1500, seed=seed, stop="|endoftext|")
        assert BYTES.end_of_text not in result.ids
        assert "<|endoftext|>" not in result.text and not result.text.endswith("<")
        assert "".join(stream_text(model, BYTES, "a", 1500, seed=seed)) == result.text
        ended += result.finish == "stop"
    assert ended


def test_characters_of_several_tokens_and_one_cut_short():
    model, cut_short = small_gpt(vocabulary=BYTES.vocab_size), 0
    for seed in range(10):
        (result,) = generate_text(model, BYTES, ["a"], 20, seed=seed, temperature=3.0)
        assert result.text == BYTES.decode(result.ids)
        assert "".join(stream_text(model, BYTES, "a", 20, seed=seed, temperature=3.0)) == result.text
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
        (["Z"], {}, "characters that are not in the vocabulary of 23 tokens: 'Z'"),
        ("abc", {}, "'prompts' must be a list of texts, got one text"),
        (["a"], {"stop": [""]}, "'stop' must not have an empty string"),
        (["a"], {"stop": ["b", 99]}, r"'stop' must have ids in \[0, 23\), got 99"),
    ],
)
def test_refuses(prompts, options, message):
    with pytest.raises(UserError, match=message):
        generate_text(small_gpt(), LETTERS, prompts, 3, **options)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (None, {}, "'prompts' must be a list of texts, got None"),
        ([1], {}, "'prompt' must be a text, got 1: generate and generate_batch take ids"),
        (["a"], {"stop": None}, "'stop' must be texts, tokens or sequences of tokens, got None"),
        (["a"], {"stop": b"x"}, "'stop' must be texts, tokens or sequences of tokens, got b'x'"),
        (["a"], {"tokenizer": "folder"}, "'tokenizer' must be a Tokenizer, got str 'folder'"),
    ],
)
def test_refuses_other_types(prompts, options, message):
    with pytest.raises(TypeError, match=message):
        generate_text(small_gpt(), **{"tokenizer": LETTERS, "prompts": prompts, "max_new_tokens": 3, **options})
