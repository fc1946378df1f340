"""Beam search with phrases that must appear."""

from itertools import product

import pytest
import torch

from fastllm.generation.beam import Search, penalty_of, run
from fastllm.generation.constraints import ConstrainedSearch, Progress
from tests.generation.models import small_gpt

PROMPT = [1, 2, 3]
PENALTY = penalty_of("test", "gnmt", 0.6)


def search(phrases, longest=6, num_beams=4, stops=(0,), model=None):
    model = model or small_gpt(vocabulary=7, context=16)
    found = ConstrainedSearch(num_beams, set(stops), PENALTY, longest, phrases)
    run(model.start([PROMPT], longest, num_beams), [found], None)
    return found.finished


def has(ids, phrase):
    return any(tuple(ids[i : i + len(s)]) == s for s in phrase for i in range(len(ids)))


def exhaustive(model, phrases, longest, stop=0):
    """Return the best score of all sequences that have the phrases, and the sequence."""
    best = None
    for length in range(longest + 1):
        for ids in product(range(1, 7), repeat=length):
            if not all(has(ids, phrase) for phrase in phrases):
                continue
            new = [*ids, stop][:longest]
            with torch.no_grad():
                logprobs = model(torch.tensor([[*PROMPT, *new]]))[0].double().log_softmax(-1)
            total = sum(float(logprobs[len(PROMPT) - 1 + i, token]) for i, token in enumerate(new))
            score = total / PENALTY(len(new))
            if best is None or score > best[0]:
                best = score, list(ids)
    return best


@pytest.mark.parametrize("phrases", [[((4,),)], [((5, 6),)], [((2, 3), (6,))], [((4,),), ((5, 2),)]])
def test_sequences_have_their_phrases(phrases):
    found = search(phrases)
    for beam in found:
        assert beam.finish == "length" or all(has(beam.ids, phrase) for phrase in phrases)
    assert all(has(found[0].ids, phrase) for phrase in phrases)


@pytest.mark.parametrize("phrases", [[((4,),)], [((5, 6),)], [((4,),), ((5,),)]])
def test_a_wide_search_finds_the_best_there_is(phrases):
    model = small_gpt(vocabulary=7, context=16)
    best = search(phrases, longest=4, num_beams=1500, model=model)[0]
    score, ids = exhaustive(model, phrases, 4)
    assert best.ids == ids
    assert best.score == pytest.approx(score, rel=1e-5)


def test_without_need_it_is_the_plain_search():
    """A phrase that the best sequence has anyway changes nothing."""
    model = small_gpt(vocabulary=7, context=16)
    plain = Search(4, {0}, PENALTY, 6)
    run(model.start([PROMPT], 6, 4), [plain], None)
    best = next(beam for beam in plain.finished if len(beam.ids) > 1)
    phrase = (tuple(best.ids[:2]),)
    assert search([phrase], model=model)[0].score >= best.score - 1e-9


def test_searches_with_and_without_phrases_share_a_batch():
    model = small_gpt(vocabulary=7, context=16)
    plain, forced = Search(3, {0}, PENALTY, 6), ConstrainedSearch(3, {0}, PENALTY, 6, [((5, 6),)])
    run(model.start([PROMPT, PROMPT], 6, 6), [forced, plain], None)
    alone = Search(3, {0}, PENALTY, 6)
    run(model.start([PROMPT], 6, 3), [alone], None)
    assert plain.finished == alone.finished
    assert forced.finished == search([((5, 6),)], num_beams=3, model=model)


def test_a_short_spelling_is_not_crowded_out_by_the_beginning_of_a_long_one():
    for seed in range(8):
        model = small_gpt(vocabulary=7, context=16, seed=seed)
        found = search([((3, 4), (5, 6, 2, 1))], longest=9, num_beams=4, model=model)[0]
        assert has(found.ids, ((3, 4), (5, 6, 2, 1)))


def test_too_little_room_ends_by_length():
    found = search([((5, 6, 5, 6),)], longest=3)
    assert all(beam.finish == "length" for beam in found) and found


def test_progress():
    phrases = [((1, 2, 3),), ((2, 4), (9,))]
    state = Progress()
    assert set(state.wanted(phrases)) == {1, 2, 9}
    state = state.after(1, phrases).after(2, phrases)
    assert state == Progress(frozenset(), (1, 2)) and 3 in state.wanted(phrases)
    other = state.after(4, phrases)  # the end of what was begun is the beginning of another phrase
    assert other == Progress(frozenset({1}))
    assert state.after(7, phrases) == Progress()
    done = state.after(3, phrases).after(9, phrases)
    assert done.met == {0, 1} and done.wanted(phrases) == [] and done.tokens(phrases) == 5
