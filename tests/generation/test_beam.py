"""Beam search against all sequences there are."""

import itertools

import pytest
import torch

from fastllm.errors import UserError
from fastllm.generation import beam, beam_search, beam_search_batch, generate, generate_batch
from fastllm.generation.beam import Search, candidates
from fastllm.models.decoder import CachedContext
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
    for found, (ids, (logprob, score)) in zip(beams[:5], expected, strict=False):
        assert tuple(found.ids) == tuple(token for token in ids if token not in stops)
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("penalty", ["gnmt", "power"])
@pytest.mark.parametrize("alpha", [0.0, 2.0, -0.5])
def test_ends_early_only_where_nothing_better_can_come(monkeypatch, penalty, alpha):
    options = {"num_beams": 2, "stop": [0, 3], "length_penalty": penalty, "alpha": alpha}
    models = [small_gpt(vocabulary=VOCABULARY, seed=seed) for seed in range(8)]
    early = [beam_search(model, PROMPT, 12, **options) for model in models]
    monkeypatch.setattr(beam.Search, "settled", lambda self, length: length == self.longest or not self.alive)
    assert early == [beam_search(model, PROMPT, 12, **options) for model in models]


# Kept up to 10 tokens, a log-probability of -1 scores -0.1 at the best; with a penalty that falls, -1.41 at the next.
@pytest.mark.parametrize(
    ("alpha", "finished", "settled"), [(1.0, -0.5, False), (1.0, -0.05, True), (-0.5, -2.0, False), (-0.5, -1.0, True)]
)
def test_settled_weighs_what_can_still_come(alpha, finished, settled):
    search = beam.Search(1, set(), lambda length: length**alpha, longest=10)
    search.alive, search.finished = [beam.Beam(logprob=-1.0)], [beam.Beam(score=finished)]
    assert search.settled(1) == settled


def test_stops_do_not_crowd_out_unfinished_sequences():
    search = beam.Search(2, {0, 1}, lambda length: 1.0, longest=10)
    search.extend(beam.candidates(torch.tensor([[9.0, 8.0, 1.0, 2.0, 0.0]]), 4), 1)
    assert [found.ids for found in search.alive] == [[3], [2]]
    assert [found.finish for found in search.finished] == ["stop", "stop"]


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
    (sampled,) = generate_batch(model, [PROMPT], 40, temperature=0)
    assert one.logprob == pytest.approx(sum(sampled.logprobs), rel=1e-6)
    assert beam_search(model, PROMPT, 40, num_beams=8)[0].logprob >= one.logprob


def test_tokens_past_the_vocabulary_are_left_out():
    model = small_gpt(vocabulary=64)
    assert max(token for found in beam_search(model, PROMPT, 9) for token in found.ids) >= 5
    assert max(token for found in beam_search(model, PROMPT, 9, vocabulary=5) for token in found.ids) < 5


@pytest.mark.parametrize(("stop", "vocabulary", "searches"), [([], None, {5}), ([6], 9, {5, 3, 1})])
def test_prompts_together_find_what_each_finds_alone(monkeypatch, stop, vocabulary, searches):
    model, keep, rows = small_gpt(), CachedContext.keep, []
    monkeypatch.setattr(
        CachedContext, "keep", lambda self, parents: (rows.append(len(parents)), keep(self, parents))[1]
    )
    prompts = [[1], [4, 5, 6, 7], list(range(20)), [2] * 16, [1]]  # one longer than the context, one as long
    options = {"num_beams": 3, "stop": stop, "vocabulary": vocabulary}
    together = beam_search_batch(model, prompts, 30, **options)
    assert set(rows) == {3 * count for count in searches}  # those that end earlier leave, and the others go on
    assert together == [beam_search(model, prompt, 30, **options) for prompt in prompts]  # scores bit for bit


def test_no_prompts():
    assert beam_search_batch(small_gpt(), [], 5) == []


def test_scores_fall_and_reasons_are_told():
    model = small_gpt()
    beams = beam_search(model, PROMPT, 6, num_beams=5, stop=[3, 7])
    scores = [found.score for found in beams]
    assert scores == sorted(scores, reverse=True)
    for found in beams:
        assert not {3, 7} & set(found.ids)
        assert (found.finish == "length") == (len(found.ids) == 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": float("nan")}, "'alpha' must be finite, got nan"),
        ({"num_beams": 0}, "'num_beams' must be at least 1, got 0"),
        ({"length_penalty": "x"}, "'length_penalty' must be one of gnmt, power, got 'x'"),
        ({"stop": [99]}, r"'stop' must have ids in \[0, 23\), got 99"),
        ({"stop": [[1, 2]]}, r"'stop' must be single tokens, got \[\[1, 2\]\]"),
        ({"prompt": []}, "'prompt' must have at least one token"),
        ({"max_new_tokens": 0}, "'max_new_tokens' must be at least 1, got 0"),
        ({"vocabulary": 24}, r"'vocabulary' must be in \[1, 23\], got 24"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        beam_search(small_gpt(), **{"prompt": PROMPT, "max_new_tokens": 3, **options})


def test_refuses_a_penalty_that_is_no_number():
    with pytest.raises(TypeError, match="beam_search: 'alpha' must be a number, got str 'x'"):
        beam_search(small_gpt(), PROMPT, 3, alpha="x")


def test_diverged_weights_are_told():
    model = small_gpt()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        beam_search(model, PROMPT, 3)


def test_one_beam_is_greedy_where_a_stop_is_only_second_best():
    search = Search(1, {0}, lambda length: float(length), 3)
    for length in (1, 2, 3):
        search.extend(candidates(torch.tensor([[2.0, 3.0, 0.0]]), 2), length)
    assert [(beam.ids, beam.finish) for beam in search.finished] == [([1, 1, 1], "length")]


def test_tokens_that_are_never_drawn_keep_their_share():
    logits = torch.tensor([[2.0, 5.0, 1.0]])
    plain, without = candidates(logits, 3), candidates(logits, 3, never=[1])
    assert plain.tokens == [[1, 0, 2]] and without.tokens == [[0, 2]]
    assert without.logprobs[0] == pytest.approx(plain.logprobs[0][1:], abs=1e-6)
