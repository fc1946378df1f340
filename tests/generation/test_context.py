"""Cached inference against the same model without a cache."""

import pytest
import torch

from fastllm.models import GPT, model_class
from tests.generation.models import Uncached, small_gpt, small_model
from tests.models.kinds import EVERY_KIND, KINDS

STEPS = 300


# Every parity of the context, also ones in which nothing or one token stays after a cut.
@EVERY_KIND
@pytest.mark.parametrize("context_length", [1, 2, 3, 16, 17])
def test_equals_the_model_without_cache_over_hundreds_of_steps(context_length, kind):
    model = small_model(kind, context=context_length)
    prompts = [[1], [4, 5, 6, 7], list(range(20)), [2] * 16]  # shorter, longer and as long as the context
    context, oracles = model.start(prompts, STEPS), [Uncached(model, prompt) for prompt in prompts]
    for _ in range(300):
        expected = torch.stack([oracle.logits() for oracle in oracles])
        torch.testing.assert_close(context.logits, expected, rtol=0, atol=1e-4)
        tokens = expected.argmax(-1).tolist()
        assert context.logits.argmax(-1).tolist() == tokens
        # The likeliest tokens alone soon go round in circles.
        tokens = [(token + step) % 23 for step, token in enumerate(tokens)]
        context.push(tokens)
        for oracle, token in zip(oracles, tokens, strict=True):
            oracle.push(token)


@EVERY_KIND
def test_logits_have_the_same_bits_in_any_batch(kind):
    model = small_model(kind)
    prompts = [[1], [4, 5, 6, 7], list(range(20)), list(range(12))]
    together = model.start(prompts, STEPS)
    alone = [model.start([prompt], STEPS) for prompt in prompts]
    for step in range(60):
        for row, context in enumerate(alone):
            assert torch.equal(context.logits[0], together.logits[row])
        tokens = [(7 * step + row) % 23 for row in range(4)]
        together.push(tokens)
        for token, context in zip(tokens, alone, strict=True):
            context.push([token])


@EVERY_KIND
def test_keep_follows_the_rows(kind):
    model = small_model(kind)
    context = model.start([[1, 2, 3], [4, 5]], STEPS, room=3)
    before = context.logits
    context.keep([1, 0, 1])
    assert torch.equal(context.logits, before[[1, 0, 1]])
    context.push([7, 8, 9])
    expected = model.start([[4, 5, 7], [1, 2, 3, 8], [4, 5, 9]], STEPS)
    torch.testing.assert_close(context.logits, expected.logits, rtol=0, atol=1e-5)
    context.keep([2])
    context.push([11])
    torch.testing.assert_close(context.logits, model.start([[4, 5, 9, 11]], STEPS).logits, rtol=0, atol=1e-5)


@EVERY_KIND
def test_several_tokens_at_once_join_the_cache(kind):
    model = small_model(kind)
    tokens = torch.randint(23, (2, 12))
    cache = model.new_cache(2)
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens.split([5, 1, 6], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=0, atol=1e-4)
        with pytest.raises(ValueError, match="it is full: its capacity is 16 tokens, a sequence has 12, and 5 more"):
            model(tokens[:, :5], cache)
        with pytest.raises(ValueError, match=r"'tokens' must have the cache's 2 sequences, got 1"):
            model(tokens[:1, :1], cache)


@pytest.mark.parametrize("lengths", [[0, 3], [4, 3], [3]])
def test_prefill_refuses_lengths(lengths):
    model = small_gpt()
    with pytest.raises(ValueError, match=r"'lengths' must be \(b,\) numbers in \[1, 3\]"):
        model.prefill(torch.zeros(2, 3, dtype=torch.int64), torch.tensor(lengths), model.new_cache(2))


def test_a_gpt2_from_transformers_gives_the_same_greedy_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=67, n_positions=64, n_layer=2, n_head=2, n_embd=16)
    oracle = transformers.GPT2LMHeadModel(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    oracle.save_pretrained(tmp_path)
    from fastllm.generation import generate

    prompt = torch.randint(1, 67, (9,))  # transformers masks the token that it is told to pad with
    expected = oracle.generate(prompt[None], max_new_tokens=50, do_sample=False, pad_token_id=0)[0, 9:]
    assert list(generate(GPT.from_pretrained(tmp_path), prompt, 50, temperature=0)) == expected.tolist()


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, kind):
    config = KINDS[kind](23, 16)
    model = model_class(config)(config).to(dtype).eval()
    context = model.start([[1, 2, 3], [4]], STEPS)
    context.push([5, 6])
    expected = model.start([[1, 2, 3, 5], [4, 6]], STEPS).logits
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-10
    torch.testing.assert_close(context.logits, expected, rtol=0, atol=tolerance)
