"""Beam search against all sequences there are."""

import itertools

import pytest
import torch

from fastllm.errors import UserError
from fastllm.generation import beam_search, generate
from tests.generation.models import small_gpt

VOCABULARY, LONGEST, PROMPT = 4, 4, [1, 2]


def everything(model, stops, penalty, alpha):
    """Return {ids: (logprob, score)} of every sequence of LONGEST tokens, or up to the stop where one ends it."""
    found = {}
    for ids in itertools.product(range(VOCABULARY), repeat=LONGEST):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*PROMPT, *ids]]))[0].double().log_softmax(-1)
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        length = LONGEST if end is None else end + 1
        logprob = sum(float(logprobs[len(PROMPT) - 1 + i, ids[i]]) for i in range(length))
        divisor = ((5 + length) / 6) ** alpha if penalty == "gnmt" else length**alpha
        found[ids[:length]] = (logprob, logprob / divisor)
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stops", [[], [3], [0, 3]])
@pytest.mark.parametrize(("penalty", "alpha"), [("gnmt", 0.0), ("gnmt", 1.0), ("power", 1.0), ("power", -0.5)])
def test_finds_the_best_of_all(seed, stops, penalty, alpha):
    model = small_gpt(vocabulary=VOCABULARY, seed=seed)
    expected = sorted(everything(model, stops, penalty, alpha).items(), key=lambda item: -item[1][1])
    beams = beam_search(
        model, PROMPT, LONGEST, num_beams=VOCABULARY**LONGEST, stop=stops, length_penalty=penalty, alpha=alpha
    )
    assert len(beams) == len(expected)
    for beam, (ids, (logprob, score)) in zip(beams[:5], expected, strict=False):
        assert tuple(beam.ids) == tuple(token for token in ids if token not in stops)
        assert beam.logprob == pytest.approx(logprob, abs=1e-4)
        assert beam.score == pytest.approx(score, abs=1e-4)


def test_length_penalties_differ():
    scores = {
        name: beam_search(small_gpt(), PROMPT, 7, num_beams=3, length_penalty=name, alpha=0.6)[0]
        for name in ("gnmt", "power")
    }
    assert scores["gnmt"].score == pytest.approx(scores["gnmt"].logprob / 2**0.6)
    assert scores["power"].score == pytest.approx(scores["power"].logprob / 7**0.6)


def test_one_beam_is_greedy_and_more_are_no_worse():
    model = small_gpt()
    greedy = list(generate(model, PROMPT, 40, temperature=0))  # past the context of 16 tokens
    (one,) = beam_search(model, PROMPT, 40, num_beams=1)
    assert one.ids == greedy
    assert beam_search(model, PROMPT, 40, num_beams=8)[0].logprob >= one.logprob


def test_scores_fall_and_reasons_are_told():
    model = small_gpt()
    beams = beam_search(model, PROMPT, 6, num_beams=5, stop=[3, 7])
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    assert all(not {3, 7} & set(beam.ids) for beam in beams)
    for beam in beams:
        assert (beam.finish == "length") == (len(beam.ids) == 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "'num_beams' must be at least 1, got 0"),
        ({"length_penalty": "x"}, "'length_penalty' must be one of gnmt, power, got 'x'"),
        ({"stop": [99]}, r"'stop' must have ids in \[0, 23\), got 99"),
        ({"stop": [[1, 2]]}, r"'stop' must be single tokens, got \[\[1, 2\]\]"),
        ({"prompt": []}, "'prompt' must have at least one token"),
        ({"max_new_tokens": 0}, "'max_new_tokens' must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        beam_search(small_gpt(), **{"prompt": PROMPT, "max_new_tokens": 3, **options})


def test_diverged_weights_are_told():
    model = small_gpt()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        beam_search(model, PROMPT, 3)
