"""From logits to a token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm.errors import UserError
from fastllm.generation import Sampling


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(logits, draws=4000, **options):
    """How often each token is drawn."""
    sampling, source = Sampling(**options), generator()
    return torch.bincount(torch.tensor([sampling.draw(logits, source)[0] for _ in range(draws)]), minlength=len(logits))


LOGITS = torch.tensor([0.5, 0.1, 0.25, 0.05, 0.1]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.1, 0.25, 0.05, 0.1]),
        ({"temperature": 0.5}, [0.25, 0.01, 0.0625, 0.0025, 0.01]),
        ({"top_k": 2}, [2, 0, 1, 0, 0]),
        ({"top_p": 0.74}, [2, 0, 1, 0, 0]),  # the fewest that have it have a little more
        ({"top_p": 0.4}, [1, 0, 0, 0, 0]),  # the likeliest alone has more
        ({"top_k": 3, "top_p": 0.5}, [1, 0, 0, 0, 0]),  # of the three the likeliest has 10 / 17
        ({"min_p": 0.19}, [0.5, 0.1, 0.25, 0, 0.1]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"top_k": 99}, [0.5, 0.1, 0.25, 0.05, 0.1]),
    ],
)
def test_draws_from_the_distribution(options, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    expected /= expected.sum()
    drawn = counts(LOGITS, **options) / 4000
    assert not drawn[expected == 0].any()
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((drawn - expected).abs() <= 4.5 * deviation).all()


def test_top_k_is_exact_among_equals():
    assert (counts(torch.zeros(9), draws=300, top_k=3) > 0).sum() == 3


def test_filters_of_nothing_change_no_draw():
    logits = torch.randn(50, generator=generator())
    plain = [Sampling().draw(logits, generator(seed)) for seed in range(50)]
    for options in ({"top_k": 50}, {"top_k": 99, "top_p": 1.0}, {"top_p": 1}, {"min_p": 0.0}):
        assert [Sampling(**options).draw(logits, generator(seed)) for seed in range(50)] == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 2.5}, "'top_k' must be a whole number, got 2.5"),
        ({"temperature": "hot"}, "'temperature' must be a number, got 'hot'"),
        ({"temperature": None}, "'temperature' must be a number, got None"),
        ({"top_p": "1"}, "'top_p' must be a number, got '1'"),
    ],
)
def test_refuses_what_is_no_number(options, message):
    with pytest.raises(TypeError, match=message):
        Sampling(**options)


def test_greedy_takes_the_likeliest_and_no_random_number():
    source = generator()
    before = source.get_state()
    for options in ({"temperature": 0.0}, {"top_k": 1}):
        assert Sampling(**options).draw(LOGITS, source)[0] == 0
    assert torch.equal(source.get_state(), before)


def test_logprob_is_the_models_own():
    for options in ({}, {"temperature": 0.3, "top_k": 2}, {"repetition_penalty": 5.0}):
        token, logprob = Sampling(**options).draw(LOGITS, generator(), seen={0})
        assert logprob == pytest.approx(float(LOGITS[token]), abs=1e-6)


@pytest.mark.parametrize("penalty", [1e300, 1.7e308, 1e-300])
def test_a_penalty_of_any_size_leaves_numbers(penalty):
    """Beyond float32's range, and so large that a penalised logit leaves float64's."""
    logits = torch.tensor([3.0, 2.0, -1.0, -5.0])
    token, logprob = Sampling(repetition_penalty=penalty).draw(logits, generator(), seen={0, 1, 2, 3})
    assert logprob == pytest.approx(float(logits.double().log_softmax(0)[token]))
    if penalty > 1:
        assert Sampling(repetition_penalty=penalty).draw(logits, generator(), seen={0, 2, 3})[0] == 1
    assert Sampling(temperature=0, repetition_penalty=penalty).draw(-logits.abs(), generator(), seen={0})[0] == (
        2 if penalty > 1 else 0
    )


def test_repetition_penalty():
    logits = torch.tensor([4.0, 3.0, -1.0])
    assert Sampling(temperature=0, repetition_penalty=2.0).draw(logits, generator(), seen={0})[0] == 1
    assert Sampling(temperature=0, repetition_penalty=2.0).draw(logits, generator(), seen={0, 1})[0] == 0  # 2, 1.5, -1
    # A negative one is multiplied: -2 is under -1.5.
    logits = torch.tensor([-1.0, -1.5])
    assert Sampling(temperature=0, repetition_penalty=2.0).draw(logits, generator(), seen={0})[0] == 1


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1 - 2**-53, 2)])
def test_the_ends_of_the_random_number_draw_nothing_impossible(monkeypatch, number, expected):
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor(number, dtype=torch.float64))
    never = -math.inf
    assert Sampling().draw(torch.tensor([never, 0.0, 0.0, never]), generator())[0] == expected


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50) | st.just(-math.inf), min_size=1, max_size=12),
    temperature=st.floats(1e-300, 100) | st.just(0.0), top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(1e-9, 1), min_p=st.none() | st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_never_draws_what_is_excluded(logits, temperature, top_k, top_p, min_p, seed):
    logits = torch.tensor([*logits, 0.0], dtype=torch.float64)
    token, logprob = Sampling(temperature, top_k, top_p, min_p).draw(logits, generator(seed))
    assert math.isfinite(logprob)
    assert top_k is None or (logits > logits[token]).sum() < top_k
    if temperature:
        probabilities = ((logits - logits.max()) / temperature).softmax(0)
        assert min_p is None or probabilities[token] >= min_p * probabilities.max() * (1 - 1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_logits_that_are_not_finite(value):
    with pytest.raises(UserError, match="logits are not finite: its weights are damaged or diverged"):
        Sampling(temperature=0).draw(torch.tensor([1.0, value, 2.0]), generator())
    with pytest.raises(UserError, match="logits are not finite"):
        Sampling().draw(torch.full((3,), -math.inf), generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "'temperature' must be at least 0 and finite, got -1.0"),
        ({"temperature": math.nan}, "'temperature' must be at least 0 and finite, got nan"),
        ({"top_k": 0}, "'top_k' must be at least 1, got 0"),
        ({"top_p": 0.0}, r"'top_p' must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"'top_p' must be in \(0, 1\], got 1.5"),
        ({"min_p": -0.1}, r"'min_p' must be in \[0, 1\], got -0.1"),
        ({"repetition_penalty": 0.0}, "'repetition_penalty' must be positive and finite, got 0.0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Sampling(**options)
