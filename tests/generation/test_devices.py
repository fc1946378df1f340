"""Generation on every device, and that a step on CUDA waits for nothing but its logits."""

import pytest
import torch

from fastllm.generation import beam_search_batch, generate_batch
from tests.generation.models import Uncached, small_gpt, small_model
from tests.models.kinds import EVERY_KIND

PROMPTS = [[1], [4, 5, 6, 7], list(range(12))]  # shorter and longer than the context of 8


@pytest.mark.parametrize("kind", ["gpt", "llama-yarn", "mistral", "qwen3"])
def test_equals_the_model_without_cache(device, kind):
    model = small_model(kind, context=8).to(device)
    context, oracles = model.start(PROMPTS, 100), [Uncached(model, prompt) for prompt in PROMPTS]
    for step in range(10):
        expected = torch.stack([oracle.logits() for oracle in oracles])
        torch.testing.assert_close(context.logits, expected, rtol=0, atol=1e-4)
        tokens = [(7 * step + row) % 23 for row in range(3)]
        context.push(tokens)
        for oracle, token in zip(oracles, tokens, strict=True):
            oracle.push(token)


def test_samples_and_beams(device):
    """The same ids as one by one: probabilities are far enough apart for what rounding does to them."""
    model = small_gpt(context=8).to(device)
    stop = [3]
    together = generate_batch(model, PROMPTS, 12, seed=0, top_k=5, stop=stop)
    assert any(result.finish == "stop" for result in together)  # so that the batch shrank
    beams = beam_search_batch(model, PROMPTS, 4, num_beams=2, stop=stop)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = generate_batch(model, [prompt], 12, seed=row, top_k=5, stop=stop)
        assert alone.ids == together[row].ids
        assert [beam.ids for beam in beams[row]] == [
            beam.ids for beam in beam_search_batch(model, [prompt], 4, num_beams=2, stop=stop)[0]
        ]


def steps(model):
    """Yield the logits of steps of every kind, with no look at a number that is on the device."""
    context = model.start(PROMPTS, 100, room=4)
    yield context.logits
    for step in range(10):  # ragged, then each sequence is cut once
        context.push([step, 1, 2])
        yield context.logits
    context.keep([2, 0, 2, 1])
    context.push([1, 2, 3, 4])
    yield context.logits
    alone = model.start([PROMPTS[0]], 100)  # one length: keys are appended as a slice
    alone.push([5])
    yield alone.logits


@EVERY_KIND
def test_no_step_asks_the_device_for_a_number(kind):
    """Tensors on meta have no numbers: who asks for one gets an error."""
    shapes = [tuple(logits.shape) for logits in steps(small_model(kind, context=8).to("meta"))]
    assert shapes == [(3, 23)] * 11 + [(4, 23), (1, 23)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_no_step_waits_for_the_gpu():
    model = small_gpt(context=8).cuda()
    expected = [logits.cpu() for logits in steps(small_gpt(context=8))]
    list(steps(model))
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = list(steps(model))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), right, rtol=0, atol=1e-4)
