"""Sampling one sequence and many."""

import pytest
import torch

import fastllm
from fastllm.errors import UserError
from fastllm.generation import generate, generate_batch
from fastllm.generation.decoding import batches
from fastllm.models import GPT, GPTConfig
from tests.generation.models import small_gpt, small_model
from tests.models.kinds import EVERY_KIND

PROMPTS = [[1], [4, 5, 6, 7], list(range(20)), [2] * 16, [1]]
OPTIONS = {"temperature": 1.2, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1}


@EVERY_KIND
def test_a_sequence_is_the_same_alone_in_a_batch_and_streamed(kind):
    model = small_model(kind)
    together = generate_batch(model, PROMPTS, 50, seed=[3, 1, 4, 1, 5], **OPTIONS)
    assert together[0].ids != together[4].ids  # the same prompt with another seed
    for prompt, seed, result in zip(PROMPTS, [3, 1, 4, 1, 5], together, strict=True):
        (alone,) = generate_batch(model, [prompt], 50, seed=seed, **OPTIONS)
        assert alone == result  # ids and log-probabilities, bit for bit
        assert list(generate(model, prompt, 50, seed=seed, **OPTIONS)) == result.ids
        assert len(result.ids) == 50
        assert result.finish == "length"


@pytest.mark.parametrize("seed", [7, [3, 1, 4, 1, 5], None])
def test_the_size_of_batches_changes_nothing(seed):
    model, results = small_gpt(), []
    for size in (None, 1, 2, 5, 99):
        torch.manual_seed(0)
        results.append(generate_batch(model, PROMPTS, 30, seed=seed, batch_size=size, **OPTIONS))
    assert all(result == results[0] for result in results)
    assert len(results[0]) == 5


def test_batches_are_of_a_gigabyte():
    with torch.device("meta"):
        gpt2, small = GPT(GPTConfig.preset("gpt2")), GPT(GPTConfig.preset("shakespeare"))
    long, short = [range(1000)] * 30, [[1]] * 200
    assert batches(gpt2, long, 24, None)[0] == slice(0, 14)  # 2 x 12 layers x 1024 x 768 float32 are 75 MB
    assert batches(gpt2, long, 2000, None)[0] == slice(0, 14)  # no more than the context is ever held
    assert batches(gpt2, short, 99, None)[0] == slice(0, 64)
    assert [part.stop for part in batches(small, short, 10, None)] == [64, 128, 192, 256]
    assert [part.stop for part in batches(small, short[:7], 10, 4, num_beams=2)] == [2, 4, 6, 8]
    assert batches(small, short[:2], 10, 1, num_beams=4) == [slice(0, 1), slice(1, 2)]
    assert batches(small, [], 10, None) == batches(small, [], 0, None) == []


def test_a_batch_holds_no_more_sequences_and_tokens_than_it_needs(monkeypatch):
    model, rooms, new_cache = small_gpt(), [], GPT.new_cache

    def watched(self, batch, capacity=None):
        rooms.append((batch, capacity))
        return new_cache(self, batch, capacity)

    monkeypatch.setattr(GPT, "new_cache", watched)
    generate_batch(model, [[1]] * 7, 2, seed=0, batch_size=3)
    generate_batch(model, [[1]], 99, seed=0)
    assert rooms == [(3, 3), (3, 3), (1, 3), (1, model.context_length)]


@EVERY_KIND
def test_a_sequence_is_the_same_when_others_end_before_it(kind):
    model = small_model(kind)
    free = generate_batch(model, PROMPTS, 40, seed=0)
    stop = free[0].ids[2]
    results = generate_batch(model, PROMPTS, 40, seed=0, stop=[stop])
    assert any(result.finish == "stop" for result in results)
    for result, before in zip(results, free, strict=True):
        cut = before.ids.index(stop) if stop in before.ids else len(before.ids)
        assert result.ids == before.ids[:cut]
        assert result.logprobs == before.logprobs[:cut]
        assert result.finish == ("stop" if stop in before.ids else "length")


def test_same_for_any_number_of_threads(threads):
    model, results = small_gpt(), []
    for count in (1, 2, 3):
        threads(count)
        results.append(generate_batch(model, PROMPTS, 30, seed=0))
    assert results[0] == results[1] == results[2]


@EVERY_KIND
def test_logprobs_are_the_models(kind):
    model = small_model(kind)
    (result,) = generate_batch(model, [[4, 5, 6]], 10, seed=0, temperature=2.0)
    with torch.no_grad():
        logprobs = model(torch.tensor([[4, 5, 6, *result.ids]]))[0].log_softmax(-1)
    expected = [float(logprobs[2 + i, token]) for i, token in enumerate(result.ids)]
    assert result.logprobs == pytest.approx(expected, abs=1e-4)


def test_tokens_past_the_vocabulary_are_neither_drawn_nor_counted():
    model = small_gpt()
    (free,) = generate_batch(model, [[20]], 40, seed=0)
    assert max(free.ids) >= 9
    (result,) = generate_batch(model, [[20]], 40, seed=0, vocabulary=9)  # what a prompt has is not looked at
    assert max(result.ids) < 9
    assert list(generate(model, [20], 40, seed=0, vocabulary=9)) == result.ids
    (penalised,) = generate_batch(model, [[20]], 40, seed=0, vocabulary=9, repetition_penalty=1.5)
    assert max(penalised.ids) < 9
    with torch.no_grad():
        logprobs = model(torch.tensor([[20, *result.ids[:10]]]))[0, :, :9].log_softmax(-1)
    expected = [float(logprobs[i, token]) for i, token in enumerate(result.ids[:10])]
    assert result.logprobs[:10] == pytest.approx(expected, abs=1e-4)
    assert generate_batch(model, [[20]], 40, seed=0, vocabulary=23) == [free]
    with pytest.raises(UserError, match=r"'vocabulary' must be in \[1, 23\], got 24"):
        generate(model, [1], 3, vocabulary=24)  # when it is called, not when it is read


def test_a_single_seed_counts_up_and_none_follows_torch():
    model = small_gpt()
    assert generate_batch(model, [[1], [1]], 20, seed=7) == generate_batch(model, [[1], [1]], 20, seed=[7, 8])
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(generate_batch(model, [[1], [1]], 20))
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


def test_stop_sequences_are_held_back():
    model = small_gpt()
    free = list(generate(model, [1], 30, seed=0))
    whole = [free[4:7], [free[4], free[5], (free[6] + 1) % 23]]  # the second begins as the first does
    assert list(generate(model, [1], 30, seed=0, stop=whole)) == free[:4]
    # A stop that only begins is given out when the end comes.
    never = [[*free[28:30], 0]]
    assert list(generate(model, [1], 30, seed=0, stop=never)) == free


def test_model_is_left_as_it_was():
    model = small_gpt().train()
    stream = generate(model, [1], 5, seed=0)
    next(stream)
    assert not model.training
    stream.close()
    assert model.training
    generate_batch(model, [[1]], 2)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_nothing_to_do():
    assert generate_batch(small_gpt(), [], 5) == []
    assert list(fastllm.generate(small_gpt(), [1], 0)) == []
    assert generate_batch(small_gpt(), [[1]], 0)[0].finish == "length"


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "'prompt' must have at least one token, got none"),
        ([[1], [23]], {}, r"'prompt' must have ids in \[0, 23\), got 23 to 23"),
        (["text"], {}, "'prompt' must be token ids, got a text: generate_text and stream_text take those"),
        ([[1, -1]], {}, r"'prompt' must have ids in \[0, 23\), got -1 to 1"),
        ([[1]], {"max_new_tokens": -1}, "'max_new_tokens' must be at least 0, got -1"),
        ([[1]], {"top_p": 2.0}, "'top_p' must be in"),
        ([[1]], {"stop": [23]}, r"'stop' must have ids in \[0, 23\), got 23"),
        ([[1]], {"stop": [[]]}, "'stop' must not have an empty string or sequence"),
        ([[1]], {"vocabulary": 0}, r"'vocabulary' must be in \[1, 23\], got 0"),
        ([[1], [2]], {"seed": [1]}, "'seed' must be a number, or one for each of the 2 prompts, got 1"),
        ([[1]], {"batch_size": 0}, "'batch_size' must be at least 1, got 0"),
        ([[[1, 2], [3, 4]]], {}, r"'prompt' must be one sequence, got \(2, 2\): generate_batch takes several"),
        ([1, 2], {}, r"'prompt' must be one sequence, got \(\)"),
    ],
)
def test_refuses(prompts, options, message):
    with pytest.raises(UserError, match=message):
        generate_batch(small_gpt(), prompts, **{"max_new_tokens": 3, **options})


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1.5]], {}, "'prompt' must be whole numbers, got torch.float32"),
        ([None], {}, "'prompt' must be token ids, got None"),
        ([[1]], {"max_new_tokens": 2.5}, "'max_new_tokens' must be a whole number, got 2.5"),
        ([[1]], {"batch_size": 1.5}, "'batch_size' must be a whole number, got 1.5"),
        ([[1]], {"seed": 1.5}, "'seed' must be a whole number, or one for each prompt, got 1.5"),
        ([[1]], {"seed": [1.5]}, r"'seed' must be a whole number, or one for each prompt, got \[1.5\]"),
        ([[1]], {"stop": "ab"}, "'stop' must be a list of tokens and sequences of tokens, got 'ab'"),
        ([[1]], {"stop": 5}, "'stop' must be a list of tokens and sequences of tokens, got 5"),
        ([[1]], {"stop": b"x"}, "'stop' must be a list of tokens and sequences of tokens, got b'x'"),
        ([[1]], {"stop": [b"x"]}, r"'stop' must be a list of tokens and sequences of tokens, got \[b'x'\]"),
    ],
)
def test_refuses_other_types(prompts, options, message):
    with pytest.raises(TypeError, match=message):
        generate_batch(small_gpt(), prompts, **{"max_new_tokens": 3, **options})


def test_seeds_may_be_an_array():
    expected = generate_batch(small_gpt(), [[1], [2]], 5, seed=[3, 4])
    for seeds in (torch.tensor([3, 4]), torch.tensor([3, 4]).numpy()):
        assert generate_batch(small_gpt(), [[1], [2]], 5, seed=seeds) == expected


def test_diverged_weights_are_told():
    model = small_gpt()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        list(generate(model, [1], 3))
